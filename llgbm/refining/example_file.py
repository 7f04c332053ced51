"""Reads the examples of a task from a file.

The ending of its name tells the format:

    .jsonl      a line {"input": TEXT, "output": TEXT}, or {"messages": [{"role": ROLE, "content": TEXT}, ...]}
    .json       one list of such objects
    .csv .tsv   an input and an output in each line, with a comma or a tab between; perhaps a first line `input,output`
    .txt, none  lines INPUT => OUTPUT, split at the last arrow

The last message of a conversation is the answer to learn. Empty lines are left out. Errors name the line and quote
nothing of it, since the examples are the user's data.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llgbm.errors import ConfigError, TaskFormatError
from llgbm.refining.settings import RefineRow

_FORM = 'an example is {"input": TEXT, "output": TEXT} or {"messages": [{"role": ROLE, "content": TEXT}, ...]}'
_ROLES = ("system", "user", "assistant")
_HEAD = ["input", "output"]


@dataclass(frozen=True)
class Example:
    """One example of a file.

    Attributes:
        place: its place in the file, such as "line 3"; "entry 3" of a JSON list.
        row: the conversation and its answer.
    """

    place: str
    row: RefineRow


def read_examples(path: Path) -> list[Example]:
    """The examples of a file, in order.

    Raises:
        TaskFormatError: the file cannot be read, has another ending, or is refused by `parse_examples`.
    """
    try:
        return parse_examples(path.read_bytes(), path.suffix)
    except OSError as error:
        raise TaskFormatError(f"{path}: cannot be read ({error.strerror}); name a file with examples") from error
    except TaskFormatError as error:
        raise TaskFormatError(f"{path}: {error}") from error


def read_pairs(path: Path) -> tuple[tuple[str, str], ...]:
    """The (input, output) pairs of a file.

    Raises:
        TaskFormatError: as `read_examples`; or an example has more messages than an input and an output.
    """
    pairs = []
    for example in read_examples(path):
        if len(example.row.messages) > 1:
            raise TaskFormatError(f"{path}: {example.place}: only an input and an output can be used here")
        pairs.append((example.row.messages[0]["content"], example.row.answer))
    return tuple(pairs)


def parse_examples(content: bytes, ending: str = ".jsonl") -> list[Example]:
    """The examples in the content of a file, in order.

    Args:
        content: text in UTF-8.
        ending: of the file's name.

    Raises:
        TaskFormatError: the ending is unknown, there is no example, or a line is not an example.
    """
    read = _READERS.get(ending.lower())
    if read is None:
        raise TaskFormatError(f"examples are read from a file that ends in {', '.join(filter(None, _READERS))}")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _refused(_line(content.count(b"\n", 0, error.start) + 1), "it is not text in UTF-8") from None
    examples = [_example(place, value) for place, value in read(text)]
    if not examples:
        raise TaskFormatError("the file has no example; write an input and its output in each line")
    return examples


def _line(number: int) -> str:
    return f"line {number}"


def _refused(place: str, problem: str) -> TaskFormatError:
    return TaskFormatError(f"{place}: {problem}")


def _lines(text: str) -> Iterator[tuple[str, str]]:
    """The lines that are not empty. str.splitlines would also split at characters that JSON allows in a string."""
    return ((_line(number), line) for number, line in enumerate(text.split("\n"), 1) if line.strip())


def _json_lines(text: str) -> Iterator[tuple[str, Any]]:
    for place, line in _lines(text):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            raise _refused(place, "it is not JSON; write one JSON object in each line") from None
        yield place, value


def _json_list(text: str) -> Iterator[tuple[str, Any]]:
    try:
        entries = json.loads(text)
    except json.JSONDecodeError as error:
        raise _refused(_line(error.lineno), f"it is not JSON ({error.msg})") from None
    except (ValueError, RecursionError):
        raise TaskFormatError("the file is not JSON that can be read") from None
    if not isinstance(entries, list):
        raise TaskFormatError(f"the file must hold a list; {_FORM}")
    return ((f"entry {number}", entry) for number, entry in enumerate(entries, 1))


def _table(text: str, delimiter: str) -> Iterator[tuple[str, Any]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    first = True
    while True:
        place = _line(reader.line_num + 1)  # a quoted text may have several lines; errors name the first one
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise _refused(place, f"it is not a line of a table ({error}); close every quote") from None
        if cells is None:
            return
        if not any(cell.strip() for cell in cells):
            continue
        head = first and [cell.strip().lower() for cell in cells] == _HEAD
        first = False
        if head:
            continue
        if len(cells) != len(_HEAD):
            problem = f"it has {len(cells)} instead of 2 columns"
            raise _refused(place, f"{problem}; write an input and an output, and quote a text with a {delimiter!r}")
        yield place, dict(zip(_HEAD, cells, strict=True))


def _arrow_lines(text: str) -> Iterator[tuple[str, Any]]:
    for place, line in _lines(text):
        given, arrow, wanted = line.rpartition("=>")
        if not arrow:
            raise _refused(place, 'an example has no arrow; write it as "INPUT => OUTPUT"')
        yield place, {"input": given.strip(), "output": wanted.strip()}


_READERS: dict[str, Callable[[str], Iterator[tuple[str, Any]]]] = {
    ".jsonl": _json_lines,
    ".json": _json_list,
    ".csv": lambda text: _table(text, ","),
    ".tsv": lambda text: _table(text, "\t"),
    ".txt": _arrow_lines,
    "": _arrow_lines,
}


def _example(place: str, value: Any) -> Example:
    """The checked example of a JSON value."""
    if isinstance(value, dict) and (unknown := sorted(value.keys() - {"messages", *_HEAD})):
        raise _refused(place, f"{unknown[0][:40]!r} is not known; {_FORM}")
    if isinstance(value, dict) and value.keys() == set(_HEAD):
        said: Any = [{"role": "user", "content": value["input"]}, {"role": "assistant", "content": value["output"]}]
    elif isinstance(value, dict) and value.keys() == {"messages"} and isinstance(value["messages"], list):
        said = value["messages"]
    else:
        raise _refused(place, _FORM)
    messages = [_message(place, message) for message in said]
    if not messages or messages[-1]["role"] != "assistant":
        raise _refused(place, "the last message must be the assistant's, since it is the answer to learn")
    if any(message["role"] == "user" and not message["content"].strip() for message in messages):
        raise _refused(place, "the input is empty")
    try:
        return Example(place, RefineRow(tuple(messages[:-1]), messages[-1]["content"]))
    except ConfigError as error:
        raise _refused(place, str(error)) from None


def _message(place: str, message: Any) -> dict[str, str]:
    if not isinstance(message, dict):
        raise _refused(place, "a message is an object with role and content")
    if unknown := sorted(message.keys() - {"role", "content"}):
        raise _refused(place, f"a message has {unknown[0][:40]!r}, which is not known; give role and content")
    role, content = message.get("role"), message.get("content")
    if role not in _ROLES or not isinstance(content, str):
        raise _refused(place, f"the role of a message is one of {', '.join(_ROLES)}, and its content is a text")
    try:
        content.encode()
    except UnicodeEncodeError:
        raise _refused(place, "a text has half of a character (a surrogate), which is not valid Unicode") from None
    return message
