"""Context distillation: what the model says with the description in its context is the target for the bare input.

The teacher needs no adapter of its own and no labels of good quality: it is the generator's shared adapter, with the
instruction in the user's turn. An adapter that repeats its predictions without the instruction carries the instruction.
(Askell et al. 2021, arXiv 2112.00861, call this context distillation.) Another teacher is an adapter that was trained
on the group's task, which reads the bare input as the student does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from llgbm.base import Base
from llgbm.errors import AdapterMismatchError
from llgbm.fitting.task_losses import label_logits
from llgbm.functional import FunctionalLoRA
from llgbm.generator import LoRAGenerator
from llgbm.lora import LoRAWeights
from llgbm.packing import TaskGroup, pack

Teacher = Literal["shared", "adapter"]


class ContextTeacher:
    """Predictions for the rows of groups that carry the same rows as the teacher reads them (`context_rows`).

    Args:
        teacher: the shared adapter as it is now, or each group's own adapter (`TaskGroup.teacher`).
        top: how many tokens of each prediction are kept; the rest counts as one.
    """

    def __init__(self, base: Base, functional: FunctionalLoRA, teacher: Teacher = "shared", *, top: int = 32) -> None:
        self._base, self._functional, self._teacher, self._top = base, functional, teacher, top

    def __call__(self, generator: LoRAGenerator, groups: Sequence[TaskGroup]) -> tuple[Tensor, Tensor, Tensor] | None:
        """What to learn, without gradients, or None where no group has `context_rows`.

        Returns:
            Which labels of `groups`, taken row by row, (n,) int64; for each the log-probabilities of the likeliest
            tokens (n, top) float32; and which tokens these are (n, top) int64.

        Raises:
            AdapterMismatchError: a group's rows in context have other answers than its rows, or a group that is to be
                taught by its adapter has none.
        """
        places: list[int] = []
        start = 0
        for group in groups:
            end = start + sum(len(row.answer) for row in group.rows)
            if group.context_rows:
                if [tuple(row.answer) for row in group.rows] != [tuple(row.answer) for row in group.context_rows]:
                    raise AdapterMismatchError(
                        f"the rows of {group.task_id} have other answers in context; give the same rows in both forms"
                    )
                places += range(start, end)
            start = end
        taught = [group for group in groups if group.context_rows]
        if not taught:
            return None
        rows = pack([group.context_rows for group in taught])
        with torch.no_grad():
            logits = label_logits(self._base, self._functional, rows, self._adapters(generator, taught))
            values, indices = logits.log_softmax(-1).topk(self._top)
        return torch.tensor(places), values, indices

    def _adapters(self, generator: LoRAGenerator, taught: Sequence[TaskGroup]) -> list[LoRAWeights | None]:
        if self._teacher == "shared":
            return [generator.shared_adapter()] * len(taught)
        if without := [group.task_id for group in taught if group.teacher is None]:
            raise AdapterMismatchError(f"{without[0]} has no adapter to be taught by; give its group a teacher")
        return [group.teacher for group in taught]
