"""What a training step works on: groups of rows, each with the condition from which its adapter is made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from llgbm.fitting.packing import Row
from llgbm.lora import LoRAWeights


@dataclass(frozen=True, eq=False)
class TaskGroup:
    """Rows of one task that share one adapter.

    Attributes:
        task_id: for the log.
        condition: (condition_size,) float32; None stands for the generator's shared adapter.
        rows: tokenised prompts and answers; empty for losses that need none.
        context_rows: the same rows as a teacher reads them, mostly with the description in the context, to distil from.
        teacher: the task's own adapter, for weight losses and to distil from.
        delta: (probes, layers, hidden) float32, the delta of the task's own adapter, for delta losses.
    """

    task_id: str
    condition: Tensor | None
    rows: Sequence[Row] = ()
    context_rows: Sequence[Row] = ()
    teacher: LoRAWeights | None = None
    delta: Tensor | None = None


TrainingBatch = Sequence[TaskGroup]
"""The groups of one step."""
