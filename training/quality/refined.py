"""`python -m training refined`: how much examples teach, from different starts, on held-out families and kinds.

For each task, an adapter is refined on its first training rows and measured on its test rows, bare and with the
description in the context. The plain base, the starts as they are, and the same examples in the context are measured
too. The result has the form of the quality table, with a column for each folder. Finished cells are kept, so the same
command continues.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any, Literal

from llgbm.base import Base, numerics_of
from llgbm.checkpoint import load_generator
from llgbm.errors import ConfigError
from llgbm.evaluation import paired_bootstrap, score_rows
from llgbm.linears.frozen_linear import Storage, fastest_training_storage
from llgbm.lora import LoRAWeights
from llgbm.prompting import AdapterMaker, AdapterRequest
from llgbm.refining.refine import refine
from llgbm.refining.settings import RefineConfig, RefineRow
from training.quality.cells import Cells
from training.quality.evaluate import paired_difference
from training.recipe.generator_base import base_of, maker_of
from training.runs.fingerprint import Fingerprint
from training.runs.log import RunLog
from training.runs.results import write_result
from training.tasks.families import TEST_ROWS, load_families
from training.tasks.format import Example, Task, evenly, exact_match, load_tasks
from training.tasks.rows import eval_row

_FEW = 3
"""Examples in the context of the rival that needs no training, as in the table of quality."""
Start = Literal["nothing", "shared", "generated"]
"""PEFT's initialisation, the generator's shared adapter, or the adapter that it makes from the description."""
_MakeStart = Callable[[], LoRAWeights | None]
"""Makes an adapter only when a cell is measured, so that few of them are in memory."""
_TITLES: Mapping[Start, str] = {
    "nothing": "PEFT's initialisation", "shared": "shared adapter", "generated": "generated"
}  # fmt: skip


@dataclass(frozen=True)
class Config:
    """Settings of the measurement."""

    workdir: Path = Path("runs/refined")
    """Folder of the cells and the result."""
    families: Path = Path("families/heldout")
    """Folder of family files."""
    heldout: Path | None = Path("tasks/heldout")
    """Folder of tasks of unseen kinds, of which as many test rows are used as a family has; none skips the column."""
    num_tasks: int = 16
    """Number of tasks from each of these two folders, evenly spread; tasks without exact match are left out."""
    counts: tuple[int, ...] = (4, 8, 16, 28)
    """Numbers of examples; a task with fewer rows is left out of a count."""
    starts: tuple[Start, ...] = ("nothing", "shared", "generated")
    """What an adapter is refined from."""
    context_tokens: int = 1024
    """Maximum number of tokens of a row in which examples stand in the context; fewer examples if they are long."""
    settings: RefineConfig = field(default_factory=lambda: RefineConfig(hold_out=False))
    """Settings of the training; the description is the task's."""
    checkpoint: Path = Path("checkpoints/qwen2.5-0.5b")
    """The generator."""
    base: str = ""
    """Hub id or folder of the frozen base; by default the checkpoint's."""
    base_storage: Storage | None = None
    """How the base's Linear weights are stored; none takes the fastest on the device."""
    device: str = "cpu"
    """A torch device, cpu or cuda."""
    text_encoder: str = ""
    """Hub id or folder of the text encoder; by default the checkpoint's."""

    def __post_init__(self) -> None:
        if self.num_tasks < 1 or self.context_tokens < 1 or not self.counts or min(self.counts) < 1:
            raise ConfigError("num_tasks, context_tokens and every one of counts must be at least 1")


@dataclass(frozen=True, eq=False)
class _Work:
    """One cell: its key, its name in the table, and its measurement."""

    key: str
    name: str
    task: Task
    measure: Callable[[], dict[str, Any]]


def run(config: Config) -> None:
    """Measure the missing cells, and write the result."""
    columns, checkpoint = _tasks(config), load_generator(config.checkpoint)
    base = base_of(
        checkpoint, config.base, config.base_storage or fastest_training_storage(config.device), config.device
    )
    maker = maker_of(checkpoint, config.text_encoder, config.base)
    cells = Cells(config.workdir / "cells.jsonl")
    with RunLog(config.workdir, "refined", config) as log:
        shared = checkpoint.generator.shared_adapter().detach()
        work = {
            name: [one for task in tasks for one in _work(config, base, maker, shared, task)]
            for name, tasks in columns.items()
        }
        with log.progress("refined", total=sum(map(len, work.values()))) as progress:
            for done, one in enumerate(chain.from_iterable(work.values()), 1):
                if cells.get(one.key) is None:
                    cells.add(one.key, {"name": one.name, "task": one.task.task_id, **one.measure()})
                progress.update(done, f"{one.task.task_id}, {one.name}")
        found = {
            name: _column([(one, cells[one.key]) for one in of_column], config.counts)
            for name, of_column in work.items()
        }
        write_result(log, "refined", config, {"columns": found}, base_revision=base.revision)
    for name, column in found.items():
        for method, row in column["methods"].items():
            print(f"{name}, {method}: {row['accuracy']:.1%}")


def _tasks(config: Config) -> dict[str, list[Task]]:
    """The tasks of each column, each with at most `TEST_ROWS` test rows."""
    folders = {"heldout_families": load_families(config.families)}
    if config.heldout is not None:
        folders["heldout_kinds"] = load_tasks(config.heldout)
    return {
        name: [replace(task, test=task.test[:TEST_ROWS]) for task in evenly(exact_match(tasks), config.num_tasks)]
        for name, tasks in folders.items()
    }


def _work(config: Config, base: Base, maker: AdapterMaker, shared: LoRAWeights, task: Task) -> Iterator[_Work]:
    description = task.descriptions[0]
    request = AdapterRequest((description,))
    starts: dict[Start, _MakeStart] = {
        "nothing": lambda: None,
        "shared": lambda: shared,
        "generated": lambda: maker.make([request])[0].weights.detach(),
    }

    # what the adapters are made of, not their content: its last bits differ with the number of threads
    made_of = {"nothing": None, "shared": maker.checkpoint.manifest.digest, "generated": maker.id_of(request)}

    def key(start: Start = "nothing", **more: Any) -> str:
        return Fingerprint.of(
            base_revision=base.revision,
            base_storage=numerics_of(base),
            description=description,
            rows=[(e.input, e.accepted) for e in task.test],
            start=made_of[start],
            **more,
        ).digest

    for name, start in starts.items():
        if name in config.starts:
            title = "base" if name == "nothing" else _TITLES[name]
            yield _Work(key(name), title, task, partial(_scores, base, task, start))
    for count in sorted({_FEW, *config.counts}):
        if count > len(task.train):
            continue
        shown = task.train[:count]
        texts = [(e.input, e.output) for e in shown]
        shots = _fitting(base, task, shown, config.context_tokens)
        yield _Work(
            key(shots=texts[: len(shots)]),
            f"base + description + {count} examples",
            task,
            partial(_scores, base, task, starts["nothing"], shots),
        )
        for name in config.starts if count in config.counts else ():
            settings = replace(config.settings, description=description)
            yield _Work(
                key(name, learned=texts, settings=str(settings)),
                _refined_title(name, count),
                task,
                partial(_refined, base, task, starts[name], shown, settings),
            )


def _refined(
    base: Base, task: Task, start: _MakeStart, shown: tuple[Example, ...], settings: RefineConfig
) -> dict[str, Any]:
    refined = refine(base, start(), [RefineRow.of(e.input, e.output) for e in shown], settings)
    seconds = {"refine_seconds": round(refined.seconds, 1), "steps": refined.steps}
    return _scores(base, task, lambda: refined.weights) | seconds


def _scores(base: Base, task: Task, adapter: _MakeStart, shots: tuple[Example, ...] = ()) -> dict[str, Any]:
    """Of every test row: right or not, bare and with the description. Examples in the context have it too."""
    began, weights = time.monotonic(), adapter()
    found: dict[str, Any] = {}
    for form, description in (("bare", None), ("described", task.descriptions[0])):
        if shots and description is None:
            continue
        rows = [eval_row(base, e, description=description, shots=shots) for e in task.test]
        found[form] = [int(score.correct) for score in score_rows(base, [(weights, rows)])[0]]
    return found | {"seconds": round(time.monotonic() - began, 1)}


def _fitting(base: Base, task: Task, shown: tuple[Example, ...], tokens: int) -> tuple[Example, ...]:
    """The first examples that fit into the context of the longest test row; at least one."""
    longest = max(task.test, key=lambda e: len(e.input))
    for count in range(len(shown), 1, -1):
        row = eval_row(base, longest, description=task.descriptions[0], shots=shown[:count])
        if len(row.prompt) + len(row.answers[0]) <= tokens:
            return shown[:count]
    return shown[:1]


def _refined_title(start: Start, count: int) -> str:
    return f"{_TITLES[start]}, refined on {count} examples"


def _column(found: list[tuple[_Work, Mapping[str, Any]]], counts: Sequence[int]) -> dict[str, Any]:
    """A column of the quality table: accuracy of every method with its 95 % interval, and paired differences."""
    cells: dict[tuple[str, str], dict[str, Any]] = {}
    for work, cell in found:
        described = f"{work.name} + description" if "bare" in cell else work.name
        for form, name in (("bare", work.name), ("described", described)):
            if form in cell:
                cells[name, work.task.task_id] = {"correct": cell[form]}
        if "refine_seconds" in cell:
            cells[work.name, work.task.task_id]["seconds"] = cell["refine_seconds"]
    tasks = list({work.task.task_id: work.task for work, _ in found}.values())
    methods = {
        name: _method([cells[name, task.task_id] for task in tasks if (name, task.task_id) in cells])
        for name in dict.fromkeys(name for name, _ in cells)
    }
    differences = [
        difference
        for one, other in _compared(counts)
        if (difference := paired_difference(cells, one, other, tasks)) is not None
    ]
    return {"num_tasks": len(tasks), "methods": methods, "differences": differences}


def _method(cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    mean, low, high = paired_bootstrap([cell["correct"] for cell in cells])
    row = {"num_tasks": len(cells), "accuracy": round(mean, 4), "interval": [round(low, 4), round(high, 4)]}
    seconds = [cell["seconds"] for cell in cells if "seconds" in cell]
    return row | ({"refine_seconds": round(median(seconds), 1)} if seconds else {})


def _compared(counts: Sequence[int]) -> Iterator[tuple[str, str]]:
    """Pairs of methods whose difference is told."""
    for count in counts:
        name = _refined_title("generated", count)
        for added in ("", " + description"):
            yield name + added, f"base + description + {_FEW} examples"
            yield name + added, _refined_title("nothing", count) + added
            yield name + added, _refined_title("shared", count) + added
            yield name + added, _TITLES["generated"] + added
