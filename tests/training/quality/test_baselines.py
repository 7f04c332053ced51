import json
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from llgbm.errors import ConfigError, TaskFormatError
from tests.training.conftest import small_tasks
from training.quality import evaluate
from training.quality.baselines import Baselines, row_digests
from training.quality.evaluate import summarise
from training.quality.methods import INDEPENDENT, METHODS

TASKS = [task for task in small_tasks() if task.task_id in ("upper", "next")]
COLUMNS = {"unseen_descriptions": TASKS}
HERE = {
    "base": "the base", "base_revision": "r0", "base_storage": "float32", "seeds": [0], "metric": "exact match",
    "probes": {"count": 2},
}  # fmt: skip
CORRECT = {"upper": [1, 0, 1, 1], "next": [0, 0, 1, 0]}
OTHER = {"upper": [0, 0, 1, 0], "next": [0, 1, 1, 0]}


def cells(method: str, correct: dict[str, list[int]]) -> dict[tuple[str, str], dict[str, Any]]:
    return {
        (method, task): {"correct": rows, "log_likelihood": [-1.0] * len(rows), "by_seed": [sum(rows) / len(rows)]}
        for task, rows in correct.items()
    }


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """A table of the teacher, of a plain base and of another generator."""
    methods = ("teacher", "base", "generated")
    found = cells("teacher", CORRECT) | cells("base", OTHER) | cells("generated", CORRECT)
    column = summarise(found, methods, TASKS, {}, {("teacher", "upper"): 0.5})
    path = tmp_path / "earlier.json"
    path.write_text(
        json.dumps({"command": "made it", "generator": "g0", **HERE, "columns": {next(iter(COLUMNS)): column}})
    )
    return path


def change(path: Path, **values: Any) -> Path:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return path


def test_what_does_not_depend_on_the_generator_and_is_not_measured_is_taken(earlier: Path) -> None:
    taken = Baselines(earlier, HERE, COLUMNS, 4).without(cells("generated", OTHER) | cells("base", OTHER))
    assert {column: list(rows) for column, rows in taken.rows.items()} == {"unseen_descriptions": ["teacher"]}
    tasks = taken.rows["unseen_descriptions"]["teacher"]["tasks"]
    assert {task: cell["accuracy"] for task, cell in tasks.items()} == {"upper": 0.75, "next": 0.25}
    assert taken.source == {"command": "made it", "generator": "g0", "methods": ["teacher"]}


def test_a_difference_to_it_is_that_of_the_tasks_means(earlier: Path) -> None:
    measured = cells("generated", OTHER)
    taken = Baselines(earlier, HERE, COLUMNS, 4).without(measured)
    rows = summarise(measured, ("generated",), TASKS, taken.rows["unseen_descriptions"], {})
    assert (
        rows["methods"]["teacher"]
        == json.loads(earlier.read_text())["columns"]["unseen_descriptions"]["methods"]["teacher"]
    )
    (found,) = (d for d in rows["differences"] if (d["of"], d["minus"]) == ("generated", "teacher"))
    assert found == {"of": "generated", "minus": "teacher", "mean": -0.125, "interval": [-0.5, 0.25], "num_tasks": 2}


def test_a_table_of_rows_that_were_changed_since_is_refused(earlier: Path) -> None:
    table = json.loads(earlier.read_text())
    table["columns"]["unseen_descriptions"]["row_digests"] = row_digests(TASKS, 4)
    Baselines(change(earlier, columns=table["columns"]), HERE, COLUMNS, 4)
    edited = [replace(TASKS[0], test=(replace(TASKS[0].test[0], input="other"), *TASKS[0].test[1:])), *TASKS[1:]]
    with pytest.raises(ConfigError, match=f"is of other rows of {TASKS[0].task_id}; make it again"):
        Baselines(earlier, HERE, {"unseen_descriptions": edited}, 4)


def test_a_table_says_where_one_before_it_had_its_own_from(earlier: Path) -> None:
    change(earlier, baselines={"command": "the first of all"})
    taken = Baselines(earlier, HERE, COLUMNS, 4).without({})
    assert taken.source["baselines"] == {"command": "the first of all"}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"base": "another"}, "base is another there and the base here"),
        ({"base_storage": "int8"}, "base_storage is int8 there"),
        ({"seeds": [0, 1]}, r"seeds is \[0, 1\] there and \[0\] here"),
        ({"probes": {"count": 3}}, "probes is {'count': 3} there"),
        ({"base_revision": "r1"}, "base_revision is r1 there and r0 here"),
        ({"columns": {}}, "no method that could be taken from it; known are base, "),
    ],
)
def test_a_table_that_cannot_be_compared_is_refused(earlier: Path, values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Baselines(change(earlier, **values), HERE, COLUMNS, 4)


@pytest.mark.parametrize(("tasks", "num_rows"), [(TASKS, 3), (TASKS[:1], 4)])
def test_other_rows_are_refused(earlier: Path, tasks: list[Any], num_rows: int) -> None:
    with pytest.raises(ConfigError, match="on other tasks or another number of rows of them in unseen_descriptions"):
        Baselines(earlier, HERE, {"unseen_descriptions": tasks}, num_rows)


def test_a_file_that_is_no_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskFormatError, match="cannot be read as a result"):
        Baselines(tmp_path / "nothing.json", HERE, COLUMNS, 4)


def test_every_independent_method_is_one_and_none_is_generated() -> None:
    assert set(INDEPENDENT) < set(METHODS)
    assert not [m for m in INDEPENDENT if "generated" in m or "shared" in m or "scaled" in m]


def test_an_evaluation_takes_what_it_cannot_run(
    tmp_path: Path, tasks_folder: Path, trained_workdir: Path, tiny_base_path: Path, generator_folder: Path
) -> None:
    config = evaluate.Config(
        workdir=tmp_path, output=tmp_path / "first.json", checkpoint=generator_folder, teachers=trained_workdir,
        tasks=tasks_folder, heldout=None, base=str(tiny_base_path), num_rows=3, task_ids=("next", "upper"),
        methods=("base", "teacher", "generated"),
    )  # fmt: skip
    evaluate.run(config)
    evaluate.run(replace(config, output=tmp_path / "second.json", teachers=tmp_path / "none", baselines=config.output))
    first, second = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("first", "second"))
    assert second["baselines"] == {"command": first["command"], "generator": first["generator"], "methods": ["teacher"]}
    rows = [table["columns"]["unseen_descriptions"]["methods"] for table in (first, second)]
    cosine = rows[0]["generated"].pop("delta_cosine")
    del rows[0]["generated"]["delta_cosine_interval"]
    by_task = [score.pop("delta_cosine") for score in rows[0]["generated"]["tasks"].values()]
    assert cosine == pytest.approx(mean(by_task), abs=1e-4)
    assert rows[0] == rows[1]  # there are no teachers any more to compare deltas with
