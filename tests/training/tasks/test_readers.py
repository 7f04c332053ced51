import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llgbm.errors import ConfigError, TaskFormatError
from training.tasks.format import Example
from training.tasks.readers import HUB_TASKS, HubTask, hub_task, read_founding_list, read_hub, split_rows


def founding(folder: Path, rows: Any, name: str = "ARC-e_train.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


ROWS = [{"prompt": f"question {i}", "response": f"answer {i}", "system": "Answer it."} for i in range(10)]


def test_a_founding_list_becomes_a_task(tmp_path: Path) -> None:
    systems = ["Reply to the question.", "answer  it.", *(row["system"] for row in ROWS[2:])]
    rows = [row | {"system": system} for row, system in zip(ROWS, systems, strict=True)]
    task = read_founding_list(founding(tmp_path, rows))
    assert task.task_id == "ARC-e"
    assert task.descriptions == ("Reply to the question.", "answer  it.")
    assert (len(task.train), len(task.test)) == (8, 2)
    assert {(r.input, r.output) for r in (*task.train, *task.test)} == {(r["prompt"], r["response"]) for r in ROWS}


def test_the_split_of_a_founding_list_does_not_depend_on_the_order(tmp_path: Path) -> None:
    one = read_founding_list(founding(tmp_path, ROWS))
    other = read_founding_list(founding(tmp_path, ROWS[::-1], "other.json"))
    assert set(one.test) == set(other.test)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({}, "expected a list of objects with prompt and response"),
        ([], "expected a list"),
        (["x"], r"\[0\]: expected an object, got str"),
        ([{"prompt": "a"}], r"\[0\].response: expected a text, got None"),
        ([ROWS[0], {"prompt": "a", "response": "b", "system": 3}], r"\[1\].system: expected a text, got 3"),
        ([{"prompt": "a", "response": "b"}], 'no row has a system text; add "system"'),
        ([*ROWS, {"prompt": "p", "response": " "}], "input and output must contain more than white space"),
    ],
)
def test_another_file_is_refused_by_file_and_row(tmp_path: Path, rows: Any, message: str) -> None:
    path = founding(tmp_path, rows)
    with pytest.raises(TaskFormatError, match=message) as caught:
        read_founding_list(path)
    assert str(path) in str(caught.value)


def test_a_missing_or_torn_list_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskFormatError, match="cannot be read"):
        read_founding_list(tmp_path / "no.json")
    (tmp_path / "torn.json").write_text("[{")
    with pytest.raises(TaskFormatError, match="is not JSON"):
        read_founding_list(tmp_path / "torn.json")


@settings(deadline=None)
@given(st.lists(st.tuples(st.text(max_size=3), st.text(max_size=1))), st.floats(0.01, 0.99))
def test_a_split_keeps_every_row_and_no_input_on_both_sides(pairs: list[tuple[str, str]], share: float) -> None:
    rows = [Example(*pair) for pair in pairs]
    train, test = split_rows(rows, share)
    assert sorted((*train, *test), key=repr) == sorted(rows, key=repr)
    assert not {r.input for r in train} & {r.input for r in test}
    assert len({r.input for r in test}) == round(share * len({r.input for r in rows}))


ARC = {"question": "What is hot?", "choices": {"text": ["ice", "fire"], "label": ["1", "2"]}, "answerKey": "2"}


@pytest.mark.parametrize(
    ("name", "record", "expected"),
    [
        ("arc_e", ARC, Example("What is hot?\nA: ice\nB: fire", "B")),
        (
            "boolq",
            {"passage": "Fire is hot.", "question": "is it", "answer": True},
            Example("Fire is hot.\nis it?", "yes"),
        ),
        ("gsm8k", {"question": "1 + 1?", "answer": "One and one.\n#### 2"}, Example("1 + 1?", "2")),
    ],
)
def test_known_data_sets_are_read_by_their_columns(name: str, record: dict[str, Any], expected: Example) -> None:
    task = hub_task(name, HUB_TASKS[name], [record], [])
    assert task.train == (expected,)
    assert len(task.descriptions) >= 4


SOURCE = HubTask("me/data", "{a}", "b", ("Do it.", "Just do it."), "c", "MIT", labels={"0": "no", "1": "yes"})


def test_rows_of_a_hub_task_are_unique_capped_and_split() -> None:
    train = [{"a": str(i % 1500), "b": 1} for i in range(3000)]
    task = hub_task("t", SOURCE, train, [{"a": str(i), "b": 0} for i in range(1400, 2400)])
    assert (len(task.train), len(task.test)) == (1000, 300)
    assert task.label_set == ("no", "yes")
    assert len({r.input for r in task.train}) == 1000


@pytest.mark.parametrize("record", [{"a": "x"}, {"b": 1}, {"a": "x", "b": 2}])
def test_a_record_that_does_not_fit_is_refused(record: dict[str, Any]) -> None:
    with pytest.raises(TaskFormatError, match=r"me/data: a record does not fit .*; its columns are"):
        hub_task("t", SOURCE, [record], [])


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"needs the datasets library: pip install -e '\.\[datasets\]'"):
        read_hub("boolq")


def test_an_unknown_data_set_is_refused() -> None:
    with pytest.raises(ConfigError, match="'bolq'; known are arc_e, boolq, gsm8k"):
        read_hub("bolq")


def test_a_data_set_is_read_through_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets", reason="needs the extra datasets")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    folder = tmp_path / "data"
    folder.mkdir()
    for split, start in (("train", 0), ("test", 100)):
        lines = [json.dumps({"a": f"row {start + i}", "b": i % 2}) for i in range(4)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    source = HubTask(str(folder), "{a}", "b", ("Do it.",), "c", "MIT", labels={"0": "no", "1": "yes"})
    task = read_hub("local", source)
    assert sorted(r.input for r in task.test) == ["row 100", "row 101", "row 102", "row 103"]
    with pytest.raises(TaskFormatError, match="cannot be read"):
        read_hub("gone", HubTask(str(tmp_path / "gone"), "{a}", "b", ("Do it.",), "c", "MIT"))
