"""Reads and writes files of examples as JSON lines. Errors name a field of the request."""

from __future__ import annotations

import json
from collections.abc import Iterable

from llgbm.errors import TaskFormatError
from llgbm.refining.example_file import Example, parse_examples
from service.jobs.errors import InvalidFileError


def read_examples(content: bytes, *, param: str = "file") -> list[Example]:
    """The examples of a file.

    Args:
        content: JSON lines in UTF-8.
        param: the field of the request that errors name.

    Raises:
        InvalidFileError: the file has no example, or a line is not an example.
    """
    try:
        return parse_examples(content)
    except TaskFormatError as error:
        raise InvalidFileError(str(error), param=param) from None


def write_examples(pairs: Iterable[tuple[str, str]]) -> bytes:
    """A file of (input, output) pairs, in the form of OpenAI's chat JSONL."""
    lines = (
        {"messages": [{"role": "user", "content": given}, {"role": "assistant", "content": wanted}]}
        for given, wanted in pairs
    )
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
