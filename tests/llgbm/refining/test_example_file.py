import json
from pathlib import Path

import pytest

from llgbm.errors import TaskFormatError
from llgbm.refining.example_file import parse_examples, read_examples, read_pairs
from llgbm.refining.settings import RefineRow

CAT, DOG = RefineRow.of("cat", "animal"), RefineRow.of('a "big"\ndog, brown', "animal")
PAIR = '{"input": "cat", "output": "animal"}'
TURNS = [
    {"role": "system", "content": "One word.\u2028"},
    {"role": "user", "content": "cat"},
    {"role": "assistant", "content": "animal"},
]


def written(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_bytes(text.encode())
    return folder / name


def test_pairs_and_conversations_are_read_from_json_lines() -> None:
    lines = [PAIR, "", json.dumps({"messages": TURNS}, ensure_ascii=False)]
    pair, turns = parse_examples(("\ufeff" + "\r\n".join(lines)).encode())
    assert (pair.place, pair.row) == ("line 1", CAT)
    assert (turns.place, turns.row) == ("line 3", RefineRow((TURNS[0], TURNS[1]), "animal"))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", f'[{PAIR}, {{"messages": {json.dumps(TURNS[1:])}}}]'),
        ("a.csv", "Input, Output\ncat,animal\r\n\r\ncat,animal"),
        ("a.csv", "\ncat,animal\ncat,animal\n"),
        ("a.TSV", "cat\tanimal\ncat\tanimal\n"),
        ("a.txt", "cat => animal\n\n cat =>animal\r\n"),
        ("a", "cat => animal\ncat => animal"),
    ],
)
def test_the_ending_of_a_file_tells_its_format(tmp_path: Path, name: str, text: str) -> None:
    path = written(tmp_path, name, text)
    assert [example.row for example in read_examples(path)] == [CAT, CAT]
    assert read_pairs(path) == (("cat", "animal"), ("cat", "animal"))


def test_the_last_of_several_arrows_splits_a_line() -> None:
    (example,) = parse_examples(b"a => b => c", ".txt")
    assert example.row == RefineRow.of("a => b", "c")


def test_a_text_in_a_table_may_have_lines_and_quotes(tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", '"a ""big""\ndog, brown",animal\n')
    assert [example.row for example in read_examples(path)] == [DOG]


def messages(*pairs: tuple[str, object]) -> str:
    return json.dumps({"messages": [{"role": role, "content": content} for role, content in pairs]})


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("a.jsonl", PAIR + "\n\nsecret: animal\n", "line 3: it is not JSON"),
        ("a.jsonl", PAIR + "\n" + "[" * 100_000, "line 2: it is not JSON"),
        ("a.jsonl", '["secret"]', "line 1: an example is"),
        ("a.jsonl", '{"input": "secret"}', "line 1: an example is"),
        ("a.jsonl", '{"input": "secret", "outputs": "secret"}', "line 1: 'outputs' is not known; an example is"),
        ("a.jsonl", PAIR[:-1] + ', "messages": []}', "line 1: an example is"),
        ("a.jsonl", '{"messages": [], "tools": ["secret"]}', "line 1: 'tools' is not known"),
        ("a.jsonl", '{"messages": []}', "line 1: the last message must be the assistant's"),
        ("a.jsonl", messages(("user", "secret")), "line 1: the last message must be the assistant's"),
        ("a.jsonl", messages(("assistant", "secret")), "line 1: an example needs a turn of the user"),
        ("a.jsonl", messages(("tool", "secret"), ("assistant", "x")), "line 1: the role of a message is one of"),
        ("a.jsonl", messages(("user", ["secret"]), ("assistant", "x")), "its content is a text"),
        ("a.jsonl", messages(("user", "secret \ud800"), ("assistant", "x")), "half of a character"),
        ("a.jsonl", messages(("user", "x"), ("assistant", " \n")), "line 1: the answer of an example is empty"),
        ("a.jsonl", messages(("user", "secret"), ("user", " "), ("assistant", "x")), "line 1: the input is empty"),
        ("a.jsonl", '{"messages": ["secret"]}', "line 1: a message is an object"),
        ("a.jsonl", '{"messages": [{"role": "user", "content": "secret", "weight": 0}]}', "a message has 'weight'"),
        ("a.jsonl", '{"input": 1, "output": "secret"}', "its content is a text"),
        ("a.jsonl", "\n \n", "has no example"),
        ("a.json", f"[{PAIR},\n secret]", "line 2: it is not JSON"),
        ("a.json", "[" * 100_000, "not JSON that can be read"),
        ("a.json", "{}", "must hold a list"),
        ("a.json", "[]", "has no example"),
        ("a.json", f'[{PAIR}, "secret"]', "entry 2: an example is"),
        ("a.csv", 'cat,animal\n"a\nsecret",c\ncat,animal,secret\n', "line 4: it has 3 instead of 2 columns"),
        ("a.csv", 'cat,animal\nsecret," \n', "line 2: it is not a line of a table"),
        ("a.csv", "secret,\n", "line 1: the answer of an example is empty"),
        ("a.csv", "input,output\n", "has no example"),
        ("a.txt", "cat => animal\nsecret", "line 2: an example has no arrow"),
        ("a.xlsx", "secret", "a file that ends in .jsonl, .json, .csv, .tsv, .txt"),
    ],
)
def test_errors_name_the_file_and_the_line_and_quote_nothing(
    tmp_path: Path, name: str, text: str, problem: str
) -> None:
    with pytest.raises(TaskFormatError) as raised:
        read_examples(written(tmp_path, name, text))
    assert name in str(raised.value)
    assert problem in str(raised.value)
    assert "secret" not in str(raised.value)


def test_a_file_that_is_missing_or_not_utf_8_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskFormatError, match="No such file"):
        read_examples(tmp_path / "none.csv")
    (tmp_path / "a.csv").write_bytes(b"cat,animal\nbird,\xff\n")
    with pytest.raises(TaskFormatError, match="line 2: it is not text in UTF-8"):
        read_examples(tmp_path / "a.csv")


def test_a_conversation_is_not_a_pair(tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl", json.dumps({"messages": TURNS}))
    with pytest.raises(TaskFormatError, match="line 1: only an input and an output"):
        read_pairs(path)
