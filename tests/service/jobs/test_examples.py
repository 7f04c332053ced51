"""Chat JSONL: what is read, and what is refused by the number of its line."""

from __future__ import annotations

import json

import pytest

from service.jobs.errors import InvalidFileError
from service.jobs.examples import read_examples, write_examples

GOOD = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}'


def test_pairs_are_read_as_they_were_written() -> None:
    pairs = [("I want my money\u2028back", "billing"), ('"quotes"\n', "漢")]
    found = read_examples(write_examples(pairs))
    assert [(e.line, e.turns, e.answer) for e in found] == [
        (number, [{"role": "user", "content": given}], wanted) for number, (given, wanted) in enumerate(pairs, 1)
    ]


def test_earlier_turns_are_context_and_empty_lines_are_no_examples() -> None:
    turns = [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c")]
    line = {"messages": [{"role": r, "content": c} for r, c in [*turns, ("assistant", "d")]]}
    (found,) = read_examples(("\ufeff\r\n" + json.dumps(line) + "\r\n\n").encode())
    assert (found.line, list(found.messages), found.answer) == (2, turns, "d")


def messages(*pairs: tuple[str, object]) -> str:
    return json.dumps({"messages": [{"role": role, "content": content} for role, content in pairs]})


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("secret,of,a,table", "not JSON"),
        ("[1, 2]", "messages"),
        ('{"prompt": "secret", "completion": "secret"}', "messages"),
        ('{"messages": []}', "assistant"),
        (messages(("user", "secret")), "assistant"),
        (messages(("assistant", "secret")), "user"),
        (messages(("user", "secret"), ("assistant", "  \n")), "empty"),
        (messages(("user", ["secret"]), ("assistant", "x")), "not text"),
        (messages(("tool", "secret"), ("assistant", "x")), "role"),
        (messages(("user", "secret \ud800"), ("assistant", "x")), "Unicode"),
        ('{"messages": ["secret"]}', "object"),
        (GOOD[:-1] + ', "tools": ["secret"]}', "'tools'"),
        ('{"messages": [{"role": "user", "content": "secret", "weight": 0}]}', "'weight'"),
        ("[" * 100000, "not JSON"),
    ],
)
def test_a_bad_line_is_named_by_its_number_and_not_quoted(line: str, words: str) -> None:
    with pytest.raises(InvalidFileError) as error:
        read_examples(f"{GOOD}\n\n{line}\n{GOOD}".encode(), param="training_file")
    assert error.value.message.startswith("line 3: ")
    assert words in error.value.message
    assert "secret" not in error.value.message
    assert (error.value.status_code, error.value.param) == (400, "training_file")


@pytest.mark.parametrize(
    ("content", "words"), [(b"", "no example"), (b"\n \n", "no example"), (b"\n\xff\xfe", "line 2")]
)
def test_a_file_without_text_or_examples_is_refused(content: bytes, words: str) -> None:
    with pytest.raises(InvalidFileError, match=words):
        read_examples(content)
