import json
from pathlib import Path

import pytest

from llgbm.errors import TaskFormatError
from llgbm.refining.settings import RefineRow
from training.tasks.example_file import read_examples

CAT, DOG = RefineRow.of("cat", "animal"), RefineRow.of('a "big"\ndog, brown', "animal")


def written(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_bytes(text.encode())
    return folder / name


def test_pairs_and_conversations_are_read_from_json_lines(tmp_path: Path) -> None:
    turns = [
        {"role": "system", "content": "One word."},
        {"role": "user", "content": "cat"},
        {"role": "assistant", "content": "animal"},
    ]
    lines = [json.dumps({"input": "cat", "output": "animal"}), "", json.dumps({"messages": turns})]
    rows = read_examples(written(tmp_path, "a.jsonl", "\ufeff" + "\r\n".join(lines)))
    assert rows == [CAT, RefineRow((turns[0], turns[1]), "animal")]


@pytest.mark.parametrize("head", ["", "Input,Output\n", "\n"])
def test_a_table_has_two_columns_and_perhaps_a_head(tmp_path: Path, head: str) -> None:
    path = written(tmp_path, "a.csv", head + 'cat,animal\r\n\r\n"a ""big""\ndog, brown",animal\n')
    assert read_examples(path) == [CAT, DOG]


def test_a_table_may_have_tabs(tmp_path: Path) -> None:
    assert read_examples(written(tmp_path, "a.TSV", "cat\tanimal\n")) == [CAT]


PAIR = '{"input": "cat", "output": "animal"}\n'


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("a.jsonl", PAIR + "\ncat: animal\n", "line 3: is no JSON"),
        ("a.jsonl", PAIR + "[" * 100_000, "line 2: is no JSON"),
        ("a.jsonl", PAIR + '{"input": "cat", "outputs": "animal"}', "line 2: an example is"),
        ("a.jsonl", '{"input": 1, "output": "animal"}', "line 1: input and output must be texts"),
        ("a.jsonl", '{"input": " ", "output": "animal"}', "line 1: the input is empty"),
        ("a.jsonl", '{"input": "cat", "output": ""}', "line 1: the answer of an example is empty"),
        ("a.jsonl", '{"messages": [{"role": "user", "content": "cat"}]}', "line 1: the last message must be"),
        ("a.jsonl", '{"messages": []}', "line 1: the last message must be"),
        ("a.jsonl", '{"messages": [{"role": "assistant", "content": "x"}]}', "line 1: an example needs a turn"),
        ("a.jsonl", '{"messages": [{"role": "tool", "content": "x"}]}', "line 1: the role of a message"),
        ("a.jsonl", '{"messages": [{"role": "user"}]}', "line 1: a message has a role and a content"),
        ("a.csv", 'cat,animal\n"a\nb",c\ncat,animal,brown\n', "line 4: has 3 instead of 2 columns"),
        ("a.csv", 'cat,animal\ncat," \n', "line 2: is no table"),
        ("a.csv", "cat,\n", "line 1: the answer of an example is empty"),
        ("a.csv", "input,output\n", "holds no example"),
        ("a.jsonl", "\n\n", "holds no example"),
        ("a.txt", "cat", "a file that ends in .jsonl, .csv, .tsv"),
    ],
)
def test_errors_name_the_file_and_the_line(tmp_path: Path, name: str, text: str, problem: str) -> None:
    with pytest.raises(TaskFormatError) as raised:
        read_examples(written(tmp_path, name, text))
    assert name in str(raised.value)
    assert problem in str(raised.value)


def test_a_file_that_is_missing_or_no_utf_8_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskFormatError, match="No such file"):
        read_examples(tmp_path / "none.csv")
    (tmp_path / "a.csv").write_bytes(b"cat,animal\nbird,\xff\n")
    with pytest.raises(TaskFormatError, match="line 2: is no UTF-8"):
        read_examples(tmp_path / "a.csv")
