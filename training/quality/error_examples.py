"""What goes wrong, in words: for a task the first test row that an adapter does not answer right."""

from __future__ import annotations

from collections.abc import Sequence

from llgbm.base import Base
from llgbm.decoding.decoder import generate
from llgbm.decoding.sampling import SamplingParams
from llgbm.lora import LoRAWeights
from training.tasks.format import Task
from training.tasks.rows import eval_row

_MAX_TOKENS = 32


def first_failure(base: Base, task: Task, adapter: LoRAWeights | None, correct: Sequence[int]) -> dict[str, str]:
    """Input, expected and given answer of a test row that is answered wrong, the input alone in the context.

    Args:
        correct: for each of the first test rows whether it is answered right; not all of them are.
    """
    row = task.test[list(correct).index(0)]
    (answer,) = generate(base, [eval_row(base, row).prompt], adapter, SamplingParams(max_tokens=_MAX_TOKENS))
    text = str(base.tokenizer.decode(answer, skip_special_tokens=True))
    return {"input": row.input, "expected": row.output, "answer": text}
