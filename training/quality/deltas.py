"""Delta cosines of the quality table: how similarly a method's adapter and the teacher change the hidden states.

Both deltas are measured with the same meter and probes, with only the input in the context (arXiv 2509.04442). Only
methods that add nothing to the context have a cosine, and only on tasks with a teacher. Cosines are saved with the
cells.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean

import torch

from llgbm.adapters.peft_io import content_digest
from llgbm.base import Base
from llgbm.delta import DeltaMeter, compute_base_activation, delta_cosine
from llgbm.lora import LoRAWeights
from llgbm.measuring.measurement import Activation
from training.adapters.delta_store import ProbeConfig
from training.quality.cells import Cells
from training.quality.methods import METHODS, MethodSources
from training.runs.log import RunLog
from training.runs.workers import Workers
from training.tasks.format import Task

TEACHER = "teacher"
"""The method that the others are compared with."""


@dataclass(frozen=True, eq=False)
class _Work:
    """The adapters of a task whose cosines are missing."""

    task_id: str
    teacher: LoRAWeights
    adapters: dict[str, LoRAWeights]
    """Adapters by the key of their cell."""
    methods: dict[str, str]
    """The first method of each adapter by key; recorded for readers of the cells."""


def delta_cosines(
    base: Base,
    sources_by_seed: Sequence[MethodSources],
    tasks: Sequence[Task],
    methods: Sequence[str],
    probes: ProbeConfig,
    cells: Cells,
    workers: Workers,
    log: RunLog,
) -> dict[tuple[str, str], float]:
    """Cosine of a method's delta with the teacher's, by method and task id; mean over seeds, from -1 to 1.

    Args:
        sources_by_seed: one for each seed.
        cells: finished cells; they are not measured again.

    Returns:
        No entry for tasks without a teacher, methods without an adapter, and methods that add to the context.
    """
    tasks = [task for task in tasks if task.task_id in sources_by_seed[0].teachers]
    if not tasks or not any(method != TEACHER for method in methods):
        return {}
    activation = compute_base_activation(base, probes.build(), probes.layers_of(base.spec))
    keys: dict[tuple[str, str], list[str]] = {}

    def missing() -> Iterator[_Work]:
        for task in tasks:
            work = _Work(task.task_id, sources_by_seed[0].teachers[task.task_id], {}, {})
            for method in methods:
                for sources in sources_by_seed:
                    adapter = _own_adapter(method, sources, task)
                    if adapter is None:
                        continue
                    key = _key(activation, adapter, work.teacher)
                    keys.setdefault((method, task.task_id), []).append(key)
                    if cells.get(key) is None:
                        work.adapters.setdefault(key, adapter)
                        work.methods.setdefault(key, method)
            if work.adapters:
                yield work

    with log.progress("delta cosines", total=len(tasks)) as progress:
        measured = workers.map(partial(_measure, probes=probes, activation=activation), missing())
        for done, (work, found) in enumerate(measured, 1):
            for key, cosine in found.items():
                cells.add(key, {"method": work.methods[key], "task": work.task_id, "delta_cosine": round(cosine, 4)})
            progress.update(done, work.task_id)
    return {place: fmean(cells[key]["delta_cosine"] for key in of) for place, of in keys.items()}


def _own_adapter(method: str, sources: MethodSources, task: Task) -> LoRAWeights | None:
    """The adapter of a method; None if it adds to the context, and for the teacher itself."""
    if method == TEACHER:
        return None
    setup = METHODS[method](sources, task)
    return None if setup is None or setup.description is not None or setup.shots else setup.adapter


def _key(activation: Activation, adapter: LoRAWeights, teacher: LoRAWeights) -> str:
    parts = ["delta cosine", activation.measurement.to_dict(), content_digest(adapter), content_digest(teacher)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]


@torch.no_grad()
def _measure(base: Base, work: _Work, probes: ProbeConfig, activation: Activation) -> dict[str, float]:
    meter = DeltaMeter(base, probes.build(), probes.layers_of(base.spec), activation)
    wanted = meter.deltas([work.teacher])[0].mean(0)
    return {key: delta_cosine(meter.deltas([adapter])[0].mean(0), wanted) for key, adapter in work.adapters.items()}
