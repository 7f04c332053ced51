"""Context distillation: the model with the description in its context is the teacher for the bare input.

The teacher is the generator's shared adapter, with the instruction in the user's turn. It needs no adapter of its own
and no labels of good quality. An adapter that repeats its predictions without the instruction carries the instruction
(Askell et al. 2021, arXiv 2112.00861). The shared adapter may also be a fixed one of an earlier generator, such as a
multi-task LoRA. Another teacher is an adapter trained on the group's task; it reads the bare input, as the student
does.

A teacher gives next-token distributions at the answer's positions and, for behavioural matching in the fit, hidden
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
from llgbm.packed.batch import TaskGroup, pack

Teacher = Literal["shared", "adapter"]
_SMALLEST_SPREAD = 1e-6


@dataclass(frozen=True, eq=False)
class Lesson:
    """The teacher's behaviour at the n taught labels of a batch, without gradients.

    Attributes:
        labels: (n,) int64, their indices among the labels of all groups, row by row.
        values: (n, top) float32, log-probabilities of the likeliest tokens there.
        indices: (n, top) int64, these tokens.
        states: (layers, n, hidden) float32, hidden states after the requested layers.
    """

    labels: Tensor
    values: Tensor
    indices: Tensor
    states: Tensor

    def state_distances(self, states: Tensor) -> Tensor:
        """Squared distance (n,) of a student's states (layers, n, hidden) from the teacher's, averaged over layers.

        It is relative to the variance of the teacher's states over the labels: their mean has distance 1, and no layer
        outweighs another.
        """
        # (layers,): norms of states differ by orders of magnitude between layers
        spread = (self.states - self.states.mean(1, keepdim=True)).square().mean((1, 2)).clamp_min(_SMALLEST_SPREAD)
        return ((states - self.states).square().mean(2) / spread[:, None]).mean(0)


class ContextTeacher:
    """The behaviour of a teacher on groups that have their rows in the teacher's form too (`context_rows`).

    Args:
        teacher: "shared", the current shared adapter; "adapter", each group's own (`TaskGroup.teacher`); or one fixed
            adapter.
        top: likeliest tokens kept of each prediction; the rest counts as one.
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
        """The behaviour to learn, or None if no group has `context_rows`.

        Raises:
            AdapterMismatchError: a group's `context_rows` have other answers than its rows, or a group lacks its
                teacher adapter.
        """
        # labels are numbered through all groups; those of groups without `context_rows` are skipped
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
        rows = pack([group.context_rows for group in taught]).on(self._base.device)
        labels = rows.flat_places(rows.label_index)
        with torch.no_grad(), keep_states(self._base.model, self._layers, labels) as kept:
            logits = label_logits(self._base, self._functional, rows, self._adapters(generator, taught))
            values, indices = logits.log_softmax(-1).topk(self._top)
        return Lesson(
            torch.tensor(places, device=logits.device), values, indices, stacked_states(kept, self._layers, logits)
        )

    def _adapters(self, generator: LoRAGenerator, taught: Sequence[TaskGroup]) -> list[LoRAWeights | None]:
        if isinstance(self._teacher, LoRAWeights):
            return [self._teacher] * len(taught)
        if self._teacher == "shared":
            return [generator.shared_adapter()] * len(taught)
        if without := [group.task_id for group in taught if group.teacher is None]:
            raise AdapterMismatchError(f"{without[0]} has no teacher adapter; give its group a teacher")
        return [group.teacher for group in taught]


def stacked_states(kept: Mapping[int, Tensor], layers: Sequence[int], like: Tensor) -> Tensor:
    """States of `layers` from `keep_states`, (n, hidden) each, as one tensor (layers, n, hidden) float32."""
    return torch.stack([kept[layer].float() for layer in layers]) if layers else like.new_zeros(0)
