"""Test rows of a task as token ids."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llgbm.base import Base
from llgbm.chat import answer_ids, prompt_ids, task_messages
from llgbm.evaluation import EvalRow
from training.tasks.format import Example, Task


def eval_row(base: Base, example: Example, *, description: str | None = None, shots: Sequence[Example] = ()) -> EvalRow:
    """A test row as token ids, with a description and examples in the context if given."""
    messages = task_messages(example.input, description=description, examples=[(s.input, s.output) for s in shots])
    return EvalRow(prompt_ids(base.tokenizer, messages), tuple(answer_ids(base.tokenizer, a) for a in example.accepted))


def short_examples(task: Task, count: int, seed: int) -> tuple[Example, ...]:
    """`count` of the task's shorter training rows, or fewer if there are not as many; deterministic for a seed."""
    rng = np.random.default_rng(seed)
    by_length = sorted(task.train, key=lambda e: len(e.input) + len(e.output))
    short = by_length[: max(count, len(task.train) // 2)]
    return tuple(short[i] for i in rng.permutation(len(short))[:count])
