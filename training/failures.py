"""What goes wrong, in words: for a task the first test row that the generated adapter does not answer right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llgbm.base import Base
from llgbm.chat import prompt_ids, task_messages
from llgbm.decoding import generate
from llgbm.sampling import SamplingParams
from training.methods import Bench
from training.tasks import Task

_MAX_TOKENS = 32


def first_failure(base: Base, bench: Bench, task: Task, correct: Sequence[int]) -> dict[str, Any] | None:
    """A test row that is answered wrong, with the answer; None where all are right.

    Args:
        correct: for each of the first test rows whether the generated adapter answers it right.
    """
    if all(correct):
        return None
    row, description = task.test[list(correct).index(0)], bench.description(task)
    prompt = prompt_ids(base.tokenizer, task_messages(row.input))
    (answer,) = generate(base, [prompt], bench.generate([description]), SamplingParams(max_tokens=_MAX_TOKENS))
    text = str(base.tokenizer.decode(answer, skip_special_tokens=True))
    return {
        "task": task.task_id,
        "description": description,
        "input": row.input,
        "expected": row.output,
        "answer": text,
    }
