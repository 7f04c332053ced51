"""`python -m training evaluate`: the quality table. Methods x tasks on the same rows, with intervals, as one JSON file.

Rows are test rows, and descriptions are unseen ones. If a task has a teacher, the table also has the cosine of each
adapter's delta with the teacher's (`training/quality/deltas.py`). Each finished cell (method, task) is written to
`{workdir}/cells.jsonl`, and never measured twice for the same generator, adapters, rows and seed. A stopped evaluation
resumes, and another seed costs only the cells that depend on the seed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from llgbm.base import numerics_of
from llgbm.checkpoint import Checkpoint, load_generator
from llgbm.errors import ConfigError
from llgbm.evaluation import paired_bootstrap
from llgbm.linears.frozen_linear import Storage
from training.adapters.delta_store import ProbeConfig
from training.adapters.teacher_folder import load_teachers
from training.cli.config import to_dict
from training.quality.baselines import Baselines, row_digests
from training.quality.cells import SHOWN, Cells, Work, cell_key, mean_cell, measured_cell
from training.quality.deltas import delta_cosines
from training.quality.methods import FIXED_CONTEXTS, METHODS, MethodSources
from training.recipe.generator_base import base_of, shared_adapter_for
from training.runs.artefacts import replace_text
from training.runs.fan_out import open_workers
from training.runs.log import RunLog
from training.runs.results import command_of
from training.runs.workers import RayTask
from training.tasks.families import load_families
from training.tasks.format import Task, evenly, exact_match, load_tasks, tasks_digest

BASELINE = "base"
"""The difference of every method to this one is reported."""
NEEDS_OTHER = (
    "generated, wrong description",
    "generated, wrong description + description",
    "generated, wrong description, scaled + description",
)
"""The methods that need tasks of two categories."""
COMPARED = (
    ("generated", "generated, wrong description"),
    ("generated", "shared adapter"),
    ("generated", "multi-task LoRA + description"),
    ("generated", "teacher"),
    ("generated + description", "base + description"),
    ("generated + description", "base + 3 examples"),
    ("generated + description", "base + description + 3 examples"),
    ("generated + description", "shared adapter + description"),
    ("generated + description", "generated, wrong description + description"),
    ("generated + description", "multi-task LoRA + description"),
    ("generated + description + 3 examples", "base + description + 3 examples"),
    ("generated + description + 3 examples", "shared adapter + description + 3 examples"),
    ("generated from description and 3 examples", "base + description + 3 examples"),
    ("generated + description + 3 examples", "multi-task LoRA + description + 3 examples"),
    ("generated, scaled + description", "generated + description"),
    ("generated, scaled + description", "base + description"),
    ("generated, scaled + description", "base + 3 examples"),
    ("generated, scaled + description", "base + description + 3 examples"),
    ("generated, scaled + description", "generated, wrong description, scaled + description"),
    ("generated, scaled + description", "multi-task LoRA + description"),
    ("generated, scaled + description", "multi-task LoRA, scaled + description"),
    ("generated, scaled + description", "nearest task's teacher"),
    ("generated, scaled + description", "softmax over 5 nearest teachers"),
    *(("auto", fixed) for fixed in FIXED_CONTEXTS["auto"]),
    *(("auto with 3 examples", fixed) for fixed in FIXED_CONTEXTS["auto with 3 examples"]),
    ("auto with 3 examples", "auto"),
    ("generated, scaled + description + 3 examples", "base + description + 3 examples"),
    ("generated", "nearest task's teacher"),
    ("generated", "softmax over 5 nearest teachers"),
    ("generated + description", "nearest task's teacher"),
    ("generated + description", "softmax over 5 nearest teachers"),
    ("generated + description", "nearest task's teacher, its own among them"),
)
"""Pairs whose difference is reported, paired by task and row."""


@dataclass(frozen=True)
class Config:
    """Settings of an evaluation."""

    workdir: Path = Path("runs/evaluate")
    """Folder of the finished cells."""
    output: Path = Path("results/quality.json")
    """File of the table."""
    checkpoint: Path = Path("checkpoints/qwen2.5-0.5b")
    """The generator artefact."""
    multitask: Path | None = None
    """Artefact of a fit with warm-start steps only; its shared adapter is the multi-task LoRA."""
    teachers: Path = Path("runs/teachers")
    """Folder of teachers; methods that need a missing teacher are skipped."""
    tasks: Path | None = Path("tasks/train")
    """Folder of the training tasks, for the column of unseen descriptions; none skips the column."""
    task_ids: tuple[str, ...] = ()
    """Only these training tasks; empty uses all."""
    heldout: Path | None = Path("tasks/heldout")
    """Folder of tasks of unseen kinds."""
    families: Path | None = None
    """Folder of the trained families, for unseen descriptions and rows; none skips the column."""
    heldout_families: Path | None = None
    """Folder of held-out families; none skips the column."""
    family_tasks: int = 100
    """Number of tasks from each of these two folders, evenly spaced."""
    methods: tuple[str, ...] = tuple(METHODS)
    """Methods to evaluate, the rows of the table."""
    num_rows: int = 50
    """Maximum number of test rows per task."""
    base: str = ""
    """Hub id or folder of the base; by default the checkpoint's."""
    base_storage: Storage = "float32"
    """How the base's Linear weights are stored."""
    device: str = "cpu"
    """A torch device, cpu or cuda; on cuda set base_storage to bfloat16 or float32."""
    text_encoder: str = ""
    """Hub id or folder of the text encoder; by default the checkpoint's."""
    baselines: Path | None = None
    """An earlier table of the same rows. Methods that do not depend on the generator and are not measured now are taken
    from it."""
    seeds: tuple[int, ...] = (0,)
    """Random seeds; each draws wordings, examples and gibberish anew. A row's score is its mean over the seeds."""
    probes: ProbeConfig = field(default_factory=ProbeConfig)
    """Probes of the delta cosines."""
    ray: str | None = None
    """Ray cluster to measure on: local, auto or an address, see `docs/SCALING.md`; none uses this process."""
    ray_task: RayTask = field(default_factory=RayTask)

    def __post_init__(self) -> None:
        unknown = [m for m in self.methods if m not in METHODS]
        if unknown:
            raise ConfigError(f"methods: unknown {', '.join(unknown)}; known are {', '.join(METHODS)}")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise ConfigError("seeds: give at least one, none of them negative and none twice")
        if self.family_tasks < 1:
            raise ConfigError("family_tasks must be at least 1")


def run(config: Config) -> None:
    """Measure missing cells, and write the table."""
    checkpoint = load_generator(config.checkpoint)
    columns = {name: column for name, column in columns_of(config).items() if column}
    all_tasks = [task for column in columns.values() for task in column]
    base = base_of(checkpoint, config.base, config.base_storage, config.device)
    head = {
        "command": command_of("evaluate", config),
        "generator": checkpoint.manifest.digest,
        "base": base.spec.base_id,
        "base_revision": base.revision,
        "base_storage": numerics_of(base),
        "seeds": list(config.seeds),
        "metric": "exact match under greedy decoding",
        "probes": to_dict(config.probes),
    }
    earlier = None
    if config.baselines is not None:
        earlier = Baselines(config.baselines, head, columns, config.num_rows)
    sources_by_seed = load_sources(config, checkpoint, all_tasks)
    with RunLog(config.workdir, "evaluate", config) as log:
        if base.revision != checkpoint.manifest.base_revision:
            log.logger.warning(
                "other_base_weights", trained_on=checkpoint.manifest.base_revision, measured_on=base.revision
            )
        cells = Cells(config.workdir / "cells.jsonl")
        work = [
            (method, task, sources) for task in all_tasks for method in config.methods for sources in sources_by_seed
        ]
        keys: dict[tuple[str, str], list[str]] = {}
        done = 0
        with open_workers(
            config.ray, config.ray_task, base, config.base or checkpoint.manifest.base_id, config.base_storage
        ) as workers:

            def missing() -> Iterator[Work]:
                nonlocal done
                begun: set[str] = set()
                for method, task, sources in work:
                    setup = METHODS[method](sources, task)
                    if setup is None:
                        continue
                    key = cell_key(base, task, config.num_rows, setup)
                    keys.setdefault((method, task.task_id), []).append(key)
                    if cells.get(key) is None and key not in begun:
                        begun.add(key)
                        yield Work(key, method, task, setup)
                    else:
                        done += 1

            with log.progress("evaluate", total=len(work)) as progress:
                for one, cell in workers.map(partial(measured_cell, num_rows=config.num_rows), missing()):
                    cells.add(one.key, {"method": one.method, "task": one.task.task_id, **cell})
                    done += 1
                    progress.update(done, f"{one.task.task_id}: {one.method}")
            cosines = delta_cosines(
                base,
                sources_by_seed,
                all_tasks,
                config.methods,
                config.probes,
                Cells(config.workdir / "delta_cells.jsonl"),
                workers,
                log,
            )
        found = {place: mean_cell([cells[key] for key in of_seeds]) for place, of_seeds in keys.items()}
        taken = None if earlier is None else earlier.without(found)
        summaries = {
            name: summarise(found, config.methods, column, taken.rows[name] if taken else {}, cosines)
            | {"row_digests": row_digests(column, config.num_rows)}
            for name, column in columns.items()
        }
        table = {
            **head,
            **({"baselines": taken.source} if taken else {}),
            "columns": summaries,
            "failures": {name: _failures(sources_by_seed[0], column, found) for name, column in columns.items()},
        }
        config.output.parent.mkdir(parents=True, exist_ok=True)
        replace_text(config.output, json.dumps(table, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
        made_of: dict[str, Any] = {"base_revision": base.revision, "data_digest": tasks_digest(all_tasks)}
        log.record_artefact(config.output, kind="result", **made_of)
        for name, column in summaries.items():
            for method, row in column["methods"].items():
                log.logger.info(
                    "result", column=name, method=method, accuracy=row["accuracy"], interval=row["interval"]
                )


def columns_of(config: Config) -> dict[str, list[Task]]:
    """The tasks of each column of the table; empty without a folder."""
    return {
        "unseen_descriptions": load_tasks(config.tasks, config.task_ids or None) if config.tasks else [],
        "heldout_kinds": load_tasks(config.heldout) if config.heldout else [],
        "trained_families": _some(config.families, config.family_tasks),
        "heldout_families": _some(config.heldout_families, config.family_tasks),
    }


def _some(folder: Path | None, count: int) -> list[Task]:
    """At most `count` tasks of families whose metric is exact match."""
    return evenly(exact_match(load_families(folder)), count) if folder else []


def load_sources(config: Config, checkpoint: Checkpoint, tasks: Sequence[Task]) -> list[MethodSources]:
    """Load the sources of the methods (text encoder, teachers, multi-task adapter); one entry for each seed."""
    trained = [task.task_id for task in checkpoint.manifest.tasks]
    wanted = dict.fromkeys([*trained, *(task.task_id for task in tasks)])
    sources = MethodSources(
        checkpoint=checkpoint,
        encoder=checkpoint.text_encoder(config.text_encoder),
        teachers=load_teachers(config.teachers, list(wanted), checkpoint.manifest.base_id),
        multitask=shared_adapter_for(config.multitask, checkpoint.manifest.base_id) if config.multitask else None,
        others={},
        seed=config.seeds[0],
        base=config.base,
    )
    needed = set(NEEDS_OTHER) & set(config.methods)
    return [replace(sources, seed=seed, others=_others(tasks, seed) if needed else {}) for seed in config.seeds]


def summarise(
    cells: Mapping[tuple[str, str], dict[str, Any]],
    methods: Sequence[str],
    tasks: Sequence[Task],
    earlier: Mapping[str, Any],
    cosines: Mapping[tuple[str, str], float],
) -> dict[str, Any]:
    """Macro means with 95 % intervals, every task's accuracy, and paired differences with intervals.

    Args:
        cells: cells by method and task.
        methods: the measured methods.
        tasks: tasks of the column.
        earlier: rows of other methods, from an earlier table.
        cosines: cosines of deltas with the teacher's, by method and task; may lack entries.
    """
    rows: dict[str, Any] = {}
    for method in methods:
        done = {t.task_id: c for t in tasks if (c := cells.get((method, t.task_id)))}
        if not done:
            rows[method] = {
                "accuracy": None,
                "interval": None,
                "reason": "nothing to run it with (no teacher, file or calibration)",
            }
            continue
        mean, low, high = paired_bootstrap([c["correct"] for c in done.values()])
        rows[method] = {
            "num_tasks": len(done),
            "accuracy": round(mean, 4),
            "interval": [round(low, 4), round(high, 4)],
            "by_seed": np.mean([c["by_seed"] for c in done.values()], axis=0).round(4).tolist(),
            "log_likelihood": round(float(np.mean([np.mean(c["log_likelihood"]) for c in done.values()])), 4),
            "tasks": {
                t: {"accuracy": round(float(np.mean(c["correct"])), 4), "n": len(c["correct"])} for t, c in done.items()
            },
        }
        if own := {t: cosines[method, t] for t in done if (method, t) in cosines}:
            mean, low, high = paired_bootstrap([[cosine] for cosine in own.values()])
            rows[method]["delta_cosine"] = round(mean, 4)
            rows[method]["delta_cosine_interval"] = [round(low, 4), round(high, 4)]
            for task, cosine in own.items():
                rows[method]["tasks"][task]["delta_cosine"] = round(cosine, 4)
    place = list(METHODS).index
    rows = dict(sorted({**rows, **earlier}.items(), key=lambda row: place(row[0])))
    means = {(method, task): cell for method, row in earlier.items() for task, cell in row["tasks"].items()}
    differences = [
        found
        for method, other in (*((m, BASELINE) for m in rows if m != BASELINE), *COMPARED)
        if (found := paired_difference({**cells, **means}, method, other, tasks)) is not None
    ]
    categories = {task.task_id: task.category for task in tasks}
    return {"num_tasks": len(tasks), "categories": categories, "methods": rows, "differences": differences}


def paired_difference(
    cells: Mapping[tuple[str, str], dict[str, Any]], method: str, other: str, tasks: Sequence[Task]
) -> dict[str, Any] | None:
    """Accuracy of `method` minus that of `other` on the tasks with both; None if no task has both.

    Paired by row if both were measured here; an earlier table has only the means of tasks.
    """
    pairs = [(cells.get((method, t.task_id)), cells.get((other, t.task_id))) for t in tasks]
    both = [_row_differences(a, b) for a, b in pairs if a and b]
    if not both:
        return None
    mean, low, high = paired_bootstrap(both)
    interval = [round(low, 4), round(high, 4)]
    return {"of": method, "minus": other, "mean": round(mean, 4), "interval": interval, "num_tasks": len(both)}


def _row_differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[float]:
    if "correct" in one and "correct" in other:
        return list(np.asarray(one["correct"], dtype=float) - np.asarray(other["correct"], dtype=float))
    mine, theirs = (float(np.mean(c["correct"])) if "correct" in c else float(c["accuracy"]) for c in (one, other))
    return [mine - theirs]


def _failures(
    sources: MethodSources, tasks: Sequence[Task], cells: Mapping[tuple[str, str], dict[str, Any]]
) -> list[dict[str, Any]]:
    """For each task with a wrong answer of the generated adapter, one such answer."""
    scored = [(task, cells[SHOWN, task.task_id]) for task in tasks if (SHOWN, task.task_id) in cells]
    return [
        {"task": task.task_id, "description": sources.description(task), **cell["failure"]}
        for task, cell in scored
        if "failure" in cell
    ]


def _others(tasks: Sequence[Task], seed: int) -> dict[str, str]:
    """For each task the description of a task of another category; deterministic for a seed."""
    found = {}
    for index, mine in enumerate(tasks):
        later = [tasks[(index + 7 * shift) % len(tasks)] for shift in range(1, len(tasks))] + list(tasks)
        other = next((task for task in later if task.category != mine.category), None)
        if other is None:
            raise ConfigError(
                f"all tasks are of one category, and the method {NEEDS_OTHER[0]!r} needs a second; "
                "leave it out of methods"
            )
        found[mine.task_id] = other.unseen_descriptions[seed % len(other.unseen_descriptions)]
    return found
