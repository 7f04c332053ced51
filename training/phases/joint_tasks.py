"""Joint tasks, which have the rows of two tasks, and the choice of pairs to compose."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from llgbm.errors import ConfigError
from training.tasks.format import Example, Task


def joint_task(first: Task, second: Task) -> Task:
    """The task with the rows of both tasks, each with its own answers.

    Rows of both alternate, so that any prefix contains as many of each. An input that occurs in both tasks, in any of
    their rows, is left out, since it would have two answers or be trained on and tested.
    """
    shared = {e.input for e in first.train + first.test} & {e.input for e in second.train + second.test}
    return Task(
        task_id=f"{first.task_id}.and.{second.task_id}",
        category="composition",
        source=f"{first.source}; {second.source}",
        licence=f"{first.licence}; {second.licence}",
        descriptions=tuple(
            then_prompt(a, b) for a, b in zip(first.seen_descriptions, second.seen_descriptions, strict=False)
        )
        or (then_prompt(first.descriptions[0], second.descriptions[0]),),
        metric="exact_match_any",
        label_set=None,
        train=_alternating(first.train, second.train, shared),
        test=_alternating(first.test, second.test, shared),
    )


def then_prompt(first: str, second: str) -> str:
    """One prompt for both tasks: "do A, then B"."""
    return f"First: {first.rstrip()} Then: {second.rstrip()}"


def choose_pairs(tasks: Sequence[Task], count: int, seed: int) -> list[tuple[Task, Task]]:
    """Pairs of tasks of different categories without common inputs; each task occurs once if that gives enough pairs.

    Raises:
        ConfigError: there is no such pair.
    """
    order = [tasks[i] for i in np.random.default_rng(seed).permutation(len(tasks))]
    inputs = {task.task_id: {e.input for e in task.train + task.test} for task in order}
    good = [
        (a, b)
        for a, b in combinations(order, 2)
        if a.category != b.category and not inputs[a.task_id] & inputs[b.task_id]
    ]
    if not good:
        raise ConfigError(
            "no two teachers are of different categories and have no common input; name pairs, or train more teachers"
        )
    chosen: list[tuple[Task, Task]] = []
    for fresh_only in (True, False):
        for pair in good:
            used = {task.task_id for chosen_pair in chosen for task in chosen_pair}
            if len(chosen) < count and pair not in chosen and not (fresh_only and used & {t.task_id for t in pair}):
                chosen.append(pair)
    return chosen


def _alternating(first: Sequence[Example], second: Sequence[Example], left_out: set[str]) -> tuple[Example, ...]:
    one = [e for e in first if e.input not in left_out]
    other = [e for e in second if e.input not in left_out]
    return tuple(row for pair in zip(one, other, strict=False) for row in pair)
