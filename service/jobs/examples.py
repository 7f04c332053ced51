"""Examples as OpenAI's chat JSONL: one conversation a line, of which the last message is the answer to learn.

Errors name the line and never quote it: the examples are the user's data.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from service.jobs.errors import InvalidFileError

_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Example:
    """One line.

    Attributes:
        line: its number in the file, from 1.
        messages: the conversation before the answer, as (role, content).
        answer: the answer to learn.
    """

    line: int
    messages: tuple[tuple[str, str], ...]
    answer: str

    @property
    def turns(self) -> list[dict[str, str]]:
        """The messages as a chat template reads them."""
        return [{"role": role, "content": content} for role, content in self.messages]


def read_examples(content: bytes, *, param: str = "file") -> list[Example]:
    """The examples of a file; empty lines are left out.

    Args:
        content: the file, in UTF-8.
        param: the field of the request that the errors blame.

    Raises:
        InvalidFileError: the file has no example, or a line is not one.
    """
    try:
        text = content.decode("utf-8-sig")
        lines = text.split("\n")  # not splitlines, which also splits at characters that JSON allows in a string
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InvalidFileError(f"line {line} is not text in UTF-8", param=param) from None
    examples = [_example(line, number, param) for number, line in enumerate(lines, 1) if line.strip()]
    if not examples:
        raise InvalidFileError('the file has no example; a line is {"messages": [...]} in JSON', param=param)
    return examples


def write_examples(pairs: Iterable[tuple[str, str]]) -> bytes:
    """A file of (input, output) pairs."""
    lines = (
        {"messages": [{"role": "user", "content": given}, {"role": "assistant", "content": wanted}]}
        for given, wanted in pairs
    )
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()


def _example(text: str, number: int, param: str) -> Example:
    try:
        return _parsed(text, number)
    except ValueError as error:
        raise InvalidFileError(f"line {number}: {error}", param=param) from None


def _parsed(text: str, number: int) -> Example:
    try:
        line: Any = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("it is not JSON; each line is one JSON object") from None
    if not isinstance(line, dict) or not isinstance(line.get("messages"), list):
        raise ValueError('it has no list "messages"; a line is {"messages": [{"role": ..., "content": ...}, ...]}')
    if unknown := sorted(line.keys() - {"messages"}):
        raise ValueError(f"{unknown[0][:40]!r} is not known here; a line has messages and nothing else")
    messages = [_message(message, place) for place, message in enumerate(line["messages"])]
    if not messages or messages[-1][0] != "assistant":
        raise ValueError("the last message is not the assistant's; it must be the answer to learn")
    if not any(role == "user" for role, _ in messages):
        raise ValueError("there is no message of the user before the answer")
    if not messages[-1][1].strip():
        raise ValueError("the answer is empty")
    return Example(number, tuple(messages[:-1]), messages[-1][1])


def _message(message: Any, place: int) -> tuple[str, str]:
    if not isinstance(message, dict):
        raise ValueError(f"messages[{place}] is not an object with role and content")
    if unknown := sorted(message.keys() - {"role", "content"}):
        raise ValueError(f"messages[{place}] has {unknown[0][:40]!r}, which is not known here; give role and content")
    role, content = message.get("role"), message.get("content")
    if role not in _ROLES:
        raise ValueError(f"the role of messages[{place}] is none of {', '.join(_ROLES)}")
    if not isinstance(content, str):
        raise ValueError(f"the content of messages[{place}] is not text")
    try:
        content.encode()
    except UnicodeEncodeError:
        raise ValueError(f"messages[{place}] holds half of a character, which is no valid Unicode") from None
    return role, content
