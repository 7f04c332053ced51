"""Reads a user's examples: JSON lines, or a table with two columns.

    {"input": "Where is my parcel?", "output": "delivery"}
    {"messages": [{"role": "user", "content": "Where is my parcel?"}, {"role": "assistant", "content": "delivery"}]}

A file `.jsonl` may have both forms. Of a conversation the last message is learned. A file `.csv` (or `.tsv`, with tabs)
has an input and an output in each line; a first line `input,output` is its head.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from llgbm.errors import ConfigError, TaskFormatError
from llgbm.refining.settings import RefineRow

_ROLES = ("system", "user", "assistant")
_HEAD = ["input", "output"]


def read_examples(path: Path) -> list[RefineRow]:
    """The examples of a file, in order; empty lines are left out.

    Raises:
        TaskFormatError: the file cannot be read, has another ending, or holds no example; or a line is not an example,
            and the message has its number.
    """
    readers: dict[str, Callable[[str], Iterator[RefineRow]]] = {
        ".jsonl": _json_lines,
        ".csv": lambda text: _table(text, ","),
        ".tsv": lambda text: _table(text, "\t"),
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise TaskFormatError(f"{path}: examples are read from a file that ends in {', '.join(readers)}")
    try:
        rows = list(reader(_text(path)))
    except _LineError as error:
        raise TaskFormatError(f"{path}, line {error.line}: {error}") from error
    if not rows:
        raise TaskFormatError(f"{path}: holds no example; write one input and its output in each line")
    return rows


class _LineError(ValueError):
    """A line that is no example."""

    def __init__(self, line: int, problem: str) -> None:
        super().__init__(problem)
        self.line = line


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise TaskFormatError(f"{path}: cannot be read ({error.strerror}); name a file with examples") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise TaskFormatError(f"{path}, line {line}: is no UTF-8; save the file as UTF-8") from error


def _json_lines(text: str) -> Iterator[RefineRow]:
    for line, content in enumerate(text.split("\n"), 1):  # JSON texts may hold the other characters of splitlines
        if not content.strip():
            continue
        try:
            value = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise _LineError(line, f"is no JSON ({error}); write one JSON object in each line") from error
        yield _row(line, *_conversation(line, value))


def _conversation(line: int, value: Any) -> tuple[list[dict[str, str]], str]:
    """The messages before the answer, and the answer."""
    if isinstance(value, dict) and value.keys() == {"input", "output"}:
        if not all(isinstance(text, str) for text in value.values()):
            raise _LineError(line, "input and output must be texts")
        return [{"role": "user", "content": value["input"]}], value["output"]
    if not isinstance(value, dict) or value.keys() != {"messages"} or not isinstance(value["messages"], list):
        raise _LineError(line, 'an example is {"input": TEXT, "output": TEXT} or {"messages": [...]}')
    messages = [_message(line, message) for message in value["messages"]]
    if not messages or messages[-1]["role"] != "assistant":
        raise _LineError(line, "the last message must be the assistant's, since it is the answer to learn")
    return messages[:-1], messages[-1]["content"]


def _message(line: int, message: Any) -> dict[str, str]:
    if not isinstance(message, dict) or message.keys() != {"role", "content"}:
        raise _LineError(line, "a message has a role and a content, and nothing else")
    if message["role"] not in _ROLES or not isinstance(message["content"], str):
        raise _LineError(line, f"the role of a message is one of {', '.join(_ROLES)}, and its content a text")
    return message


def _table(text: str, delimiter: str) -> Iterator[RefineRow]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    first = True
    while True:
        line = reader.line_num + 1  # a quoted text may have several lines; errors name the first one
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise _LineError(line, f"is no table ({error}); close every quote") from error
        if cells is None:
            return
        if not any(cell.strip() for cell in cells):
            continue
        head = first and [cell.strip().lower() for cell in cells] == _HEAD
        first = False
        if head:
            continue
        if len(cells) != len(_HEAD):
            problem = f"has {len(cells)} instead of 2 columns"
            raise _LineError(line, f"{problem}; write an input and an output, and quote a text with a {delimiter!r}")
        yield _row(line, [{"role": "user", "content": cells[0]}], cells[1])


def _row(line: int, messages: list[dict[str, str]], answer: str) -> RefineRow:
    try:
        row = RefineRow(tuple(messages), answer)
    except ConfigError as error:
        raise _LineError(line, str(error)) from error
    if any(message["role"] == "user" and not message["content"].strip() for message in messages):
        raise _LineError(line, "the input is empty")
    return row
