"""Draws the batches for tuning the text encoder: pairs of texts on the same task, with similar tasks in one batch.

A pair is two wordings of a task, or a wording and a few examples. The other pairs of a batch are the negatives, so most
of a batch are sisters: tasks on the same inputs, whose descriptions differ in little but the important words.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from llgbm.errors import ConfigError
from llgbm.prompting import example_lines
from training.tasks.format import Task
from training.tasks.training_set import TrainingSet

_T = TypeVar("_T")

_FAMILIES, _SISTERS = 7, 6
"""Families of family files in a batch, and the maximum number of tasks of each: most of a batch, and all sisters."""
_SYNTHETIC_FAMILIES, _SYNTHETIC_SISTERS = 2, 4
"""The same of procedural tasks. They are fewer, because their wordings are of few patterns."""
_OWN_TASKS = 8
"""Tasks of the folder of task files in a batch. They are hardly related, so they are the easy negatives."""
_EXAMPLE_FRACTION = 0.2
"""Fraction of the pairs that are a wording and examples; most adapters are made from a wording."""
_EXAMPLES = 3
"""Number of these examples."""


@dataclass(frozen=True)
class Pair:
    """A wording of a task, and other texts on it: one wording or the lines of some examples."""

    wording: str
    others: tuple[str, ...]


class PairSampler:
    """Draws pairs of texts that may be trained on. A batch depends on the seed and the step alone.

    Args:
        tasks: held-back wordings and test rows are not used.

    Raises:
        ConfigError: a task has no description to train on, or batches would have fewer than two tasks.
    """

    def __init__(self, tasks: TrainingSet, seed: int) -> None:
        for task in tasks.all:
            if not task.seen_descriptions:
                raise ConfigError(f"{task.task_id} has no description to train on; leave it out or write more wordings")
        self._seed = seed
        self._own = tasks.own
        self._families = _grouped(tasks.relatives, lambda task: str(task.family))
        self._synthetic = _grouped(tasks.synthetic, lambda task: task.category)
        if len(self._tasks(np.random.default_rng(seed))) < 2:
            raise ConfigError("a batch needs at least two tasks to tell apart; give more tasks")

    def __call__(self, step: int) -> list[Pair]:
        """The pairs of a step, each of another task."""
        rng = np.random.default_rng([self._seed, step])
        return [self._pair(task, rng) for task in self._tasks(rng)]

    def _tasks(self, rng: np.random.Generator) -> list[Task]:
        groups = [
            *((family, _SISTERS) for family in _some(self._families, _FAMILIES, rng)),
            *((family, _SYNTHETIC_SISTERS) for family in _some(self._synthetic, _SYNTHETIC_FAMILIES, rng)),
            (self._own, _OWN_TASKS),
        ]
        return [task for group, count in groups for task in _some(group, count, rng)]

    def _pair(self, task: Task, rng: np.random.Generator) -> Pair:
        wordings = _some(task.seen_descriptions, 2, rng)
        if rng.random() < _EXAMPLE_FRACTION:
            rows = _some(task.train, _EXAMPLES, rng)
            return Pair(wordings[0], example_lines([(row.input, row.output) for row in rows]))
        return Pair(wordings[0], (wordings[-1],))  # a task with one wording is paired with itself


def _some(items: Sequence[_T], count: int, rng: np.random.Generator) -> list[_T]:
    return [items[i] for i in rng.permutation(len(items))[:count]]


def _grouped(tasks: Sequence[Task], key: Callable[[Task], str]) -> list[list[Task]]:
    groups: dict[str, list[Task]] = {}
    for task in tasks:
        groups.setdefault(key(task), []).append(task)
    return list(groups.values())
