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


@dataclass(frozen=True)
class PairConfig:
    """Composition of a batch."""

    families: int = 7
    """Families of family files in a batch."""
    sisters: int = 6
    """Maximum number of tasks of each of these families."""
    synthetic_families: int = 2
    """Families of procedural tasks in a batch."""
    synthetic_sisters: int = 4
    """Maximum number of tasks of each of these families."""
    own_tasks: int = 8
    """Tasks of the folder of task files in a batch."""
    example_fraction: float = 0.2
    """Fraction of the pairs that are a wording and examples instead of two wordings."""
    num_examples: int = 3
    """Number of these examples."""

    def __post_init__(self) -> None:
        counts = (self.families, self.sisters, self.synthetic_families, self.synthetic_sisters, self.own_tasks)
        if min(counts) < 0 or self.num_examples < 1 or not 0 <= self.example_fraction <= 1:
            raise ConfigError(
                "counts of a batch must not be negative, num_examples must be at least 1, and example_fraction from "
                "0 to 1"
            )


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

    def __init__(self, tasks: TrainingSet, config: PairConfig, seed: int) -> None:
        for task in tasks.all:
            if not task.seen_descriptions:
                raise ConfigError(f"{task.task_id} has no description to train on; leave it out or write more wordings")
        self._config, self._seed = config, seed
        self._own = tasks.own
        self._families = _grouped(tasks.relatives, lambda task: str(task.family))
        self._synthetic = _grouped(tasks.synthetic, lambda task: task.category)
        if len(self._tasks(np.random.default_rng(seed))) < 2:
            raise ConfigError("a batch needs at least two tasks to tell apart; give more tasks or raise the counts")

    def __call__(self, step: int) -> list[Pair]:
        """The pairs of a step, each of another task."""
        rng = np.random.default_rng([self._seed, step])
        return [self._pair(task, rng) for task in self._tasks(rng)]

    def _tasks(self, rng: np.random.Generator) -> list[Task]:
        config = self._config
        groups = [
            *((family, config.sisters) for family in _some(self._families, config.families, rng)),
            *((family, config.synthetic_sisters) for family in _some(self._synthetic, config.synthetic_families, rng)),
            (self._own, config.own_tasks),
        ]
        return [task for group, count in groups for task in _some(group, count, rng)]

    def _pair(self, task: Task, rng: np.random.Generator) -> Pair:
        wordings = _some(task.seen_descriptions, 2, rng)
        if rng.random() < self._config.example_fraction:
            rows = _some(task.train, self._config.num_examples, rng)
            return Pair(wordings[0], example_lines([(row.input, row.output) for row in rows]))
        return Pair(wordings[0], (wordings[-1],))  # a task with one wording is paired with itself


def _some(items: Sequence[_T], count: int, rng: np.random.Generator) -> list[_T]:
    return [items[i] for i in rng.permutation(len(items))[:count]]


def _grouped(tasks: Sequence[Task], key: Callable[[Task], str]) -> list[list[Task]]:
    groups: dict[str, list[Task]] = {}
    for task in tasks:
        groups.setdefault(key(task), []).append(task)
    return list(groups.values())
