import json
from pathlib import Path
from typing import Any

import pytest

from llgbm.errors import ConfigError
from training.quality import tables

BEFORE = "# Title\n\n<!-- table: {} -->\nold | numbers\n<!-- end -->\n\nText after it.\n"


def method(accuracy: float | None, **by_task: float) -> dict[str, Any]:
    if accuracy is None:
        return {"accuracy": None, "interval": None, "reason": "no teacher"}
    return {
        "accuracy": accuracy,
        "interval": [accuracy - 0.1, accuracy + 0.1],
        "log_likelihood": -1.234,
        "tasks": {task: {"accuracy": value, "n": 20} for task, value in by_task.items()},
    }


QUALITY = {
    "command": "python -m training evaluate",
    "failures": {
        "heldout_kinds": [
            {"task": "three", "description": "x", "input": "a | b\nc", "expected": "d", "answer": "e"},
            {"task": "four", "description": "x", "input": "word " * 30, "expected": "d", "answer": "e"},
        ]
    },
    "columns": {
        "unseen_descriptions": {
            "methods": {
                "base": method(0.1),
                "generated": method(0.45, one=0.4, two=0.5),
                "auto": method(0.6),
                "teacher": method(None),
            },
            "differences": [
                {"of": "generated", "minus": "base", "mean": 0.35, "interval": [0.25, 0.4]},
                {"of": "auto", "minus": "generated", "mean": 0.15, "interval": [0.05, 0.2]},
                {"of": "generated", "minus": "generated, wrong description", "mean": -0.05, "interval": [-0.1, 0.0]},
            ],
        },
        "heldout_kinds": {
            "methods": {"base": method(0.2), "generated": method(0.3, three=0.3), "teacher": method(0.5, three=0.5)},
            "differences": [],
        },
    },
}


def documents(tmp_path: Path, *places: str) -> tables.Config:
    (tmp_path / "quality.json").write_text(json.dumps(QUALITY))
    paths = tuple(tmp_path / f"{i}.md" for i in range(len(places)))
    for path, place in zip(paths, places, strict=True):
        path.write_text(BEFORE.format(place))
    return tables.Config(tmp_path / "quality.json", paths)


def filled(tmp_path: Path, place: str) -> str:
    config = documents(tmp_path, place)
    tables.run(config)
    return config.documents[0].read_text()


def test_only_the_place_changes_and_a_second_run_changes_nothing(tmp_path: Path) -> None:
    config = documents(tmp_path, "methods")
    tables.run(config)
    text = config.documents[0].read_text()
    assert text.startswith("# Title\n\n<!-- table: methods -->\n\n| method |")
    assert text.endswith("|\n\n<!-- end -->\n\nText after it.\n")
    assert "old" not in text
    tables.run(config)
    assert config.documents[0].read_text() == text


def test_delta_cosines_stand_beside_one_group_that_has_them(tmp_path: Path) -> None:
    config = documents(tmp_path, "methods heldout_kinds", "methods unseen_descriptions", "methods")
    quality = json.loads(config.quality.read_text())
    row = quality["columns"]["heldout_kinds"]["methods"]["generated"]
    row |= {"delta_cosine": 0.512, "delta_cosine_interval": [0.4, 0.6]}
    config.quality.write_text(json.dumps(quality))
    tables.run(config)
    with_them, without, both = (path.read_text() for path in config.documents)
    assert "| log-likelihood a token | delta cosine with the teacher |" in with_them
    assert "| generated | 30.0 % (20.0 % to 40.0 %) | -1.23 | 0.51 (0.40 to 0.60) |" in with_them
    assert "| teacher | 50.0 % (40.0 % to 60.0 %) | -1.23 | – |" in with_them
    assert "delta cosine" not in without + both


def test_kinds_are_means_over_their_tasks_the_best_first(tmp_path: Path) -> None:
    config = documents(tmp_path, "kinds unseen_descriptions")
    quality = json.loads(config.quality.read_text())
    column = quality["columns"]["unseen_descriptions"]
    column["categories"] = {"one": "list_ops", "two": "numbers", "three": "numbers"}
    column["methods"] = {"generated": method(0.5, one=0.4, two=0.8, three=0.6), "teacher": method(0.9, one=0.9)}
    config.quality.write_text(json.dumps(quality))
    tables.run(config)
    lines = config.documents[0].read_text().splitlines()
    start = lines.index("| kind | tasks | generated | teacher |")
    assert lines[start + 2 : start + 4] == ["| numbers | 2 | 70.0 % | – |", "| list ops | 1 | 40.0 % | 90.0 % |"]


def test_methods_that_were_not_run_are_left_out_or_have_a_dash(tmp_path: Path) -> None:
    config = documents(tmp_path, "methods", "methods unseen_descriptions")
    tables.run(config)
    both, one = (path.read_text() for path in config.documents)
    assert "| generated | 45.0 % (35.0 % to 55.0 %) | 30.0 % (20.0 % to 40.0 %) |" in both
    assert "| teacher | – | 50.0 % (40.0 % to 60.0 %) |" in both
    assert "| generated | 45.0 % (35.0 % to 55.0 %) | -1.23 |" in one
    assert "teacher" not in one


def test_a_place_may_choose_methods_and_their_order(tmp_path: Path) -> None:
    text = filled(tmp_path, "methods only teacher; base")
    rows = [line for line in text.splitlines() if line.startswith("| ")][2:]
    assert rows == [
        "| teacher | – | 50.0 % (40.0 % to 60.0 %) |",
        "| base | 10.0 % (0.0 % to 20.0 %) | 20.0 % (10.0 % to 30.0 %) |",
    ]
    one_group = filled(tmp_path, f"tasks heldout_kinds from {tmp_path / 'quality.json'} only generated")
    assert "| task | generated |\n| --- | --- |\n| three | 30.0 % |\n" in one_group


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("methods trained_families", "no group trained_families in its columns; it has unseen_descriptions, heldout_k"),
        ("failures unseen_descriptions", "no group unseen_descriptions in its failures; it has heldout_kinds"),
        ("methods only base; guess", "has no method 'guess'; it has base; generated; auto; teacher"),
        ("differences only base", "differences has no choice of methods"),
    ],
)
def test_a_group_or_method_that_the_result_lacks_is_refused(tmp_path: Path, place: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        filled(tmp_path, place)


def test_auto_stands_beside_every_fixed_choice_with_the_difference_to_it(tmp_path: Path) -> None:
    text = filled(tmp_path, "auto")
    assert "| auto | 60.0 % (50.0 % to 70.0 %) | – |" in text
    assert "| generated | 45.0 % (35.0 % to 55.0 %); +15.0 (+5.0 to +20.0) | 30.0 % (20.0 % to 40.0 %) |" in text
    assert "| base + description + 3 examples | – | – |" in text


def test_differences_are_in_points(tmp_path: Path) -> None:
    text = filled(tmp_path, "differences")
    assert "| generated − generated, wrong description | -5.0 (-10.0 to +0.0) | – |" in text
    assert "− base |" not in text


def test_tasks_have_a_column_for_each_method_that_has_them(tmp_path: Path) -> None:
    text = filled(tmp_path, "tasks heldout_kinds")
    assert "| task | teacher | generated |\n| --- | --- | --- |\n| three | 50.0 % | 30.0 % |\n" in text


def test_a_place_may_name_another_result(tmp_path: Path) -> None:
    config = documents(
        tmp_path, f"methods from {tmp_path / 'other.json'}", f"tasks heldout_kinds from {tmp_path / 'other.json'}"
    )
    (tmp_path / "other.json").write_text(json.dumps(QUALITY).replace("0.45", "0.25"))
    tables.run(config)
    assert "| generated | 25.0 %" in config.documents[0].read_text()
    assert "| three | 50.0 % |" in config.documents[1].read_text()


def test_failures_are_shown_where_they_fit_into_a_table(tmp_path: Path) -> None:
    text = filled(tmp_path, "failures heldout_kinds")
    assert "| three | a \\| b c | d | e |" in text
    assert "four" not in text


@pytest.mark.parametrize("place", ["method", "methods nowhere"])
def test_an_unknown_table_is_refused_and_nothing_is_written(tmp_path: Path, place: str) -> None:
    config = documents(tmp_path, "methods", place)
    with pytest.raises(ConfigError, match=f"unknown table {place}"):
        tables.run(config)
    assert "old | numbers" in config.documents[0].read_text()


@pytest.mark.parametrize("lost", ["<!-- end -->", "methods"])
def test_a_place_that_has_lost_its_end_or_name_takes_nothing_with_it(tmp_path: Path, lost: str) -> None:
    config = documents(tmp_path, "methods")
    document = config.documents[0]
    document.write_text(document.read_text().replace(lost, "", 1) + "between\n" + BEFORE.format("differences"))
    text = document.read_text()
    with pytest.raises(ConfigError, match="has 1 tables without a name, or without an <!-- end -->"):
        tables.run(config)
    assert document.read_text() == text


def test_a_document_without_a_place_is_refused(tmp_path: Path) -> None:
    config = documents(tmp_path, "methods")
    config.documents[0].write_text("# Title\n")
    with pytest.raises(ConfigError, match="has no place for a table"):
        tables.run(config)
