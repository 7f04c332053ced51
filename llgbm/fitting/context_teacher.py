"""Context distillation: what the model says with the description in its context is the target for the bare input.

The teacher needs no adapter of its own and no labels of good quality: it is the generator's shared adapter, with the
instruction in the user's turn. An adapter that repeats its predictions without the instruction carries the instruction.
(Askell et al. 2021, arXiv 2112.00861, call this context distillation.) It may be that of an earlier generator, held
still, such as a multi-task LoRA. Another teacher is an adapter that was trained on the group's task, which reads the
bare input as the student does.

A teacher gives next-token distributions at the answer's positions and, for behavioural matching in the fit, the hidden
states of some layers there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from llgbm.base import Base
from llgbm.delta import keep_states
from llgbm.errors import AdapterMismatchError
from llgbm.fitting.task_losses import label_logits
from llgbm.functional import FunctionalLoRA
from llgbm.generator import LoRAGenerator
from llgbm.lora import LoRAWeights
from llgbm.packing import TaskGroup, pack

Teacher = Literal["shared", "adapter"]
_SMALLEST_SPREAD = 1e-6


@dataclass(frozen=True, eq=False)
class Lesson:
    """The teacher's behaviour at the labels of a batch that it teaches. Nothing in it has gradients.

    Attributes:
        labels: (n,) int64, the taught ones among the labels of all groups, taken row by row.
        values: (n, top) float32, the log-probabilities of the likeliest tokens there.
        indices: (n, top) int64, these tokens.
        states: (layers, n, hidden) float32, hidden states after the layers asked for.
    """

    labels: Tensor
    values: Tensor
    indices: Tensor
    states: Tensor

    def state_distances(self, states: Tensor) -> Tensor:
        """Squared distance (n,) of a student's states (layers, n, hidden) from the teacher's, a mean over layers.

        Each layer's is relative to the variance of the teacher's states over the labels, so that 1 is the distance of
        their mean and no layer outweighs another.
        """
        spread = (self.states - self.states.mean(1, keepdim=True)).square().mean((1, 2)).clamp_min(_SMALLEST_SPREAD)
        return ((states - self.states).square().mean(2) / spread[:, None]).mean(0)


class ContextTeacher:
    """The behaviour of a teacher on groups that carry the same rows as the teacher reads them (`context_rows`).

    Args:
        teacher: "shared", the shared adapter as it is now; "adapter", each group's own (`TaskGroup.teacher`); or one
            adapter, held still.
        top: tokens of each prediction that are kept; the rest counts as one.
        layers: decoder layers whose states are kept, ascending.
    """

    def __init__(
        self,
        base: Base,
        functional: FunctionalLoRA,
        teacher: Teacher | LoRAWeights = "shared",
        *,
        top: int = 32,
        layers: Sequence[int] = (),
    ) -> None:
        self._base, self._functional, self._teacher, self._top = base, functional, teacher, top
        self._layers = layers

    def __call__(self, generator: LoRAGenerator, groups: Sequence[TaskGroup]) -> Lesson | None:
        """The behaviour to learn, or None where no group has `context_rows`.

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
        with torch.no_grad(), keep_states(self._base.model, self._layers, rows.label_index) as kept:
            logits = label_logits(self._base, self._functional, rows, self._adapters(generator, taught))
            values, indices = logits.log_softmax(-1).topk(self._top)
        return Lesson(torch.tensor(places), values, indices, stacked_states(kept, self._layers, logits))

    def _adapters(self, generator: LoRAGenerator, taught: Sequence[TaskGroup]) -> list[LoRAWeights | None]:
        if isinstance(self._teacher, LoRAWeights):
            return [self._teacher] * len(taught)
        if self._teacher == "shared":
            return [generator.shared_adapter()] * len(taught)
        if without := [group.task_id for group in taught if group.teacher is None]:
            raise AdapterMismatchError(f"{without[0]} has no adapter to be taught by; give its group a teacher")
        return [group.teacher for group in taught]


def stacked_states(kept: Mapping[int, Tensor], layers: Sequence[int], like: Tensor) -> Tensor:
    """States of layers (layers, n, hidden) float32, of which `keep_states` has collected (n, hidden) each."""
    return torch.stack([kept[layer].float() for layer in layers]) if layers else like.new_zeros(0)
