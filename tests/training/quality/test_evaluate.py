import json
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import torch

from llgbm.base import Base, load_base
from llgbm.checkpoint import load_generator
from llgbm.delta import DeltaMeter, delta_cosine
from llgbm.errors import ConfigError
from tests.training.conftest import small_tasks
from tests.training.tasks.test_families import write
from training.adapters.delta_store import ProbeConfig
from training.quality import cells, deltas, evaluate
from training.quality.methods import METHODS
from training.tasks.rows import eval_row


@pytest.fixture
def config(
    tmp_path: Path, tasks_folder: Path, trained_workdir: Path, tiny_base_path: Path, generator_folder: Path
) -> evaluate.Config:
    return evaluate.Config(
        workdir=tmp_path, output=tmp_path / "quality.json", checkpoint=generator_folder, teachers=trained_workdir,
        tasks=tasks_folder, heldout=None, base=str(tiny_base_path), num_rows=3,
    )  # fmt: skip


def table(config: evaluate.Config) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(config.output.read_text())
    return found


def test_the_first_wrong_answer_of_each_task_is_shown(config: evaluate.Config) -> None:
    evaluate.run(config)
    found = table(config)
    tasks = {task.task_id: task for task in small_tasks()}
    [(column, failures)] = found["failures"].items()
    right = found["columns"][column]["methods"]["generated"]["tasks"]
    assert [one["task"] for one in failures] == sorted(t for t in tasks if right[t]["accuracy"] < 1)
    for one in failures:  # two steps teach nothing
        row = next(row for row in tasks[one["task"]].test if row.input == one["input"])
        assert one["expected"] == row.output
        assert one["answer"] not in row.accepted
        assert one["description"] in tasks[one["task"]].descriptions


def test_every_method_is_scored_on_every_task(config: evaluate.Config, generator_folder: Path) -> None:
    evaluate.run(replace(config, multitask=generator_folder))
    found = table(config)
    assert list(found["columns"]) == ["unseen_descriptions"]
    methods = found["columns"]["unseen_descriptions"]["methods"]
    assert list(methods) == list(METHODS)
    every = {t.task_id for t in small_tasks()}
    for name, row in methods.items():
        low, high = row["interval"]
        assert 0 <= low <= row["accuracy"] <= high <= 1
        expected_tasks = every - {"title"} if name == "generated, description trained on" else every
        assert set(row["tasks"]) == expected_tasks
        assert all(score["n"] == 3 for score in row["tasks"].values())
        assert row["num_tasks"] == len(expected_tasks)
    differences = found["columns"]["unseen_descriptions"]["differences"]
    pairs = [(d["of"], d["minus"]) for d in differences]
    assert len(set(pairs)) == len(pairs)
    assert {(name, "base") for name in methods if name != "base"} | set(evaluate.COMPARED) == set(pairs)
    for difference in differences:
        low, high = difference["interval"]
        of, minus = (methods[difference[side]]["tasks"] for side in ("of", "minus"))
        expected = mean(of[task]["accuracy"] - minus[task]["accuracy"] for task in of.keys() & minus.keys())
        assert difference["mean"] == pytest.approx(expected, abs=2e-4)
        assert low <= difference["mean"] <= high
    assert found["command"].startswith("python -m training evaluate ")


def test_adapters_are_compared_with_teachers_by_their_deltas(
    config: evaluate.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    methods = ("base", "generated", "generated + description", "nearest task's teacher, its own among them", "teacher")
    config = replace(config, methods=methods, probes=ProbeConfig(count=3, layers=2))
    evaluate.run(config)
    rows = table(config)["columns"]["unseen_descriptions"]["methods"]
    assert [name for name, row in rows.items() if "delta_cosine" in row] == [methods[3], "generated"]
    checkpoint, tasks = load_generator(config.checkpoint), small_tasks()
    (sources,) = evaluate.load_sources(config, checkpoint, tasks)
    base = load_base(config.base)
    meter = DeltaMeter(base, config.probes.build(), config.probes.layers_of(base.spec))
    for task in tasks:
        made = METHODS["generated"](sources, task)
        assert made is not None
        assert made.adapter is not None
        with torch.no_grad():
            moved = meter.deltas([made.adapter, sources.teachers[task.task_id]]).mean(1)
        found = rows["generated"]["tasks"][task.task_id]["delta_cosine"]
        assert found == pytest.approx(delta_cosine(*moved), abs=2e-3)
    low, high = rows["generated"]["delta_cosine_interval"]
    assert low <= rows["generated"]["delta_cosine"] <= high
    assert max(score["delta_cosine"] for score in rows[methods[3]]["tasks"].values()) == pytest.approx(1, abs=1e-4)

    def never(*arguments: Any, **named: Any) -> None:
        raise AssertionError("measured twice")

    monkeypatch.setattr(deltas, "_measure", never)
    evaluate.run(config)
    assert table(config)["columns"]["unseen_descriptions"]["methods"] == rows


def test_a_method_without_what_it_needs_is_reported_as_not_run(config: evaluate.Config, tmp_path: Path) -> None:
    methods = ("base", "teacher", "mean of the teachers", "nearest task's teacher", "multi-task LoRA")
    evaluate.run(replace(config, teachers=tmp_path / "nowhere", methods=methods, task_ids=("upper",)))
    found = table(config)["columns"]["unseen_descriptions"]["methods"]
    assert found["base"]["accuracy"] is not None
    assert all(found[name]["accuracy"] is None and found[name]["reason"] for name in methods[1:])


def test_only_test_rows_and_unseen_descriptions_are_used(
    config: evaluate.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[Any] = []
    real = eval_row

    def watched(base: Base, example: Any, *, description: str | None = None, shots: Any = ()) -> Any:
        rows.append((example, description, shots))
        return real(base, example, description=description, shots=shots)

    monkeypatch.setattr(cells, "eval_row", watched)
    evaluate.run(config)
    tests = {e for t in small_tasks() for e in t.test}
    trains = {e for t in small_tasks() for e in t.train}
    unseen = {d for t in small_tasks() for d in t.unseen_descriptions}
    unseen |= {d for t in small_tasks() if t.task_id == "title" for d in t.descriptions}  # not trained on
    assert rows
    for example, description, shots in rows:
        assert example in tests
        assert example not in trains
        assert description is None or description in unseen
        assert set(shots) <= trains


def test_a_stopped_evaluation_computes_only_what_is_missing(
    config: evaluate.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(config, methods=("base", "teacher"), task_ids=("next", "upper"))
    evaluate.run(config)
    whole = table(config)
    file = config.workdir / "cells.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:2]) + lines[2][:25])  # the third was cut off by a crash
    computed: list[str] = []
    real = cells.measured_cell

    def counted(base: Any, item: Any, num_rows: int) -> Any:
        computed.append(item.task.task_id)
        return real(base, item, num_rows)

    monkeypatch.setattr(evaluate, "measured_cell", counted)
    evaluate.run(config)
    assert computed == ["upper", "upper"]
    assert table(config)["columns"] == whole["columns"]
    evaluate.run(config)
    assert len(computed) == 2


@pytest.mark.parametrize(
    ("method", "change", "cells"),
    [
        ("base", {"num_rows": 2}, 2),
        ("base", {"base_storage": "bfloat16"}, 2),
        ("base", {"seeds": (1,)}, 1),  # nothing is drawn for it
        ("base", {"teachers": Path("nowhere")}, 1),
        ("base + 3 examples", {"seeds": (1,)}, 2),
        ("generated, gibberish", {"seeds": (1,)}, 2),
        ("generated", {"teachers": Path("nowhere")}, 1),
    ],
)
def test_a_cell_is_taken_again_where_all_that_decides_it_is_the_same(
    config: evaluate.Config, method: str, change: dict[str, Any], cells: int
) -> None:
    config = replace(config, methods=(method,), task_ids=("upper",))
    evaluate.run(config)
    evaluate.run(replace(config, **change))
    assert len((config.workdir / "cells.jsonl").read_text().splitlines()) == cells


def test_several_seeds_give_the_mean_of_each_and_cost_only_what_they_decide(config: evaluate.Config) -> None:
    methods = ("base", "base + 3 examples", "generated")
    config = replace(config, methods=methods, task_ids=("upper", "next"))
    for seeds in ((0,), (1,), (0, 1)):
        evaluate.run(replace(config, seeds=seeds, output=config.workdir / f"{seeds}.json"))
    one, two, both = (
        json.loads((config.workdir / f"{seeds}.json").read_text())["columns"]["unseen_descriptions"]["methods"]
        for seeds in ((0,), (1,), (0, 1))
    )
    for method in methods:
        assert both[method]["by_seed"] == [one[method]["accuracy"], two[method]["accuracy"]]
        assert both[method]["accuracy"] == pytest.approx(
            (one[method]["accuracy"] + two[method]["accuracy"]) / 2, abs=1e-4
        )
        likelihoods = [found[method]["log_likelihood"] for found in (one, two)]
        assert both[method]["log_likelihood"] == pytest.approx(sum(likelihoods) / 2, abs=2e-4)
        assert all(row["n"] == 3 for row in both[method]["tasks"].values())
    lines = [json.loads(line) for line in (config.workdir / "cells.jsonl").read_text().splitlines()]
    assert sorted((line["method"], line["task"]) for line in lines) == sorted(
        [("base", t) for t in config.task_ids]
        + 2 * [("base + 3 examples", t) for t in config.task_ids]
        + [("generated", t) for t in config.task_ids]  # these tasks hold one wording back
    )


@pytest.mark.parametrize("seeds", [(), (0, 0), (-1,)])
def test_seeds_that_make_no_mean_are_refused(seeds: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="at least one, none of them negative and none twice"):
        evaluate.Config(seeds=seeds)


def test_held_out_tasks_have_a_column_of_their_own(config: evaluate.Config, tasks_folder: Path, tmp_path: Path) -> None:
    heldout = tmp_path / "heldout"
    heldout.mkdir()
    (heldout / "title.json").write_bytes((tasks_folder / "title.json").read_bytes())
    evaluate.run(replace(config, methods=("base", "generated"), task_ids=("upper", "next"), heldout=heldout))
    columns = table(config)["columns"]
    assert {name: column["num_tasks"] for name, column in columns.items()} == {
        "unseen_descriptions": 2,
        "heldout_kinds": 1,
    }
    assert list(columns["heldout_kinds"]["methods"]["generated"]["tasks"]) == ["title"]


def test_families_have_two_columns_without_the_tasks_that_exact_match_cannot_measure(
    config: evaluate.Config, tmp_path: Path
) -> None:
    folders = [tmp_path / name for name in ("trained", "new")]
    for folder in folders:
        folder.mkdir()
        write(folder)  # two tasks, one of them with several right answers
    families, heldout = folders
    evaluate.run(
        replace(config, tasks=None, task_ids=(), methods=("base",), families=families, heldout_families=heldout)
    )
    columns = table(config)["columns"]
    assert {name: list(column["categories"]) for name, column in columns.items()} == {
        "trained_families": ["parcels.status"],
        "heldout_families": ["parcels.status"],
    }


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(ConfigError, match="methods: unknown magic; known are base, "):
        evaluate.Config(methods=("base", "magic"))


def test_a_wrong_prompt_needs_a_second_category(config: evaluate.Config) -> None:
    with pytest.raises(ConfigError, match="all tasks are of one category"):
        evaluate.run(replace(config, methods=("generated, wrong description",), task_ids=("upper", "title")))
