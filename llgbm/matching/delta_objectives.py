"""Objectives of `llgbm.training.train` that match a teacher: its weights, its delta, both, or its delta by a head.

Every objective is a mean over the groups of a batch. Each group needs a condition, and the teacher or delta that the
loss compares with. The part `base_forwards` counts the adapters run through the base on the probes; its sum over steps
is the cost of a run.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from llgbm.delta import DeltaMeter
from llgbm.errors import ConfigError
from llgbm.generator import LoRAGenerator
from llgbm.lora import LoRAWeights
from llgbm.matching.delta_head import DeltaHead
from llgbm.matching.losses import DeltaGuidedLoss, DeltaOnlyLoss, MultiTaskLoss, WeightLoss
from llgbm.packed.batch import TrainingBatch


class _MeanOverGroups:
    """The shared part of the objectives: the loss is a mean over the groups of a batch."""

    def modules(self) -> Iterable[nn.Module]:
        """None: only the generator is trained."""
        return ()

    def weight(self, batch: TrainingBatch) -> float:
        """Number of groups; the loss is a mean over them."""
        return float(len(batch))


@dataclass(frozen=True, eq=False)
class WeightObjective(_MeanOverGroups):
    """The teacher's weights only; no pass through the base."""

    loss: WeightLoss = WeightLoss()

    def __call__(self, generator: LoRAGenerator, batch: TrainingBatch, step: int) -> tuple[Tensor, dict[str, float]]:
        """As `Objective`."""
        loss, parts = self.loss(generator(conditions_of(batch)), teachers_of(batch))
        return loss, parts | {"base_forwards": 0}


@dataclass(frozen=True, eq=False)
class DeltaObjective(_MeanOverGroups):
    """The teacher's delta, computed with the base at every step; with `MultiTaskLoss` also its weights.

    Attributes:
        meter: measures the generated adapters as the teachers were measured.
    """

    meter: DeltaMeter
    loss: DeltaOnlyLoss | MultiTaskLoss = DeltaOnlyLoss()

    def __call__(self, generator: LoRAGenerator, batch: TrainingBatch, step: int) -> tuple[Tensor, dict[str, float]]:
        """As `Objective`."""
        generated = generator(conditions_of(batch))
        delta = self.meter.deltas(generated)
        if isinstance(self.loss, MultiTaskLoss):
            loss, parts = self.loss(generated, teachers_of(batch), delta, deltas_of(batch))
        else:
            loss, parts = self.loss(delta, deltas_of(batch))
        return loss, parts | {"base_forwards": len(generated)}


@dataclass(frozen=True, eq=False)
class DeltaGuidedObjective(_MeanOverGroups):
    """The teacher's delta by a head that reads the generated adapter; the base runs every `loss.every` steps.

    Attributes:
        meter: measures the generated adapters as the teachers were measured.
        head: trained together with the generator.
        use_teachers: also train the head on the teachers, whose deltas are known and cost no pass.
    """

    meter: DeltaMeter
    head: DeltaHead
    loss: DeltaGuidedLoss = DeltaGuidedLoss()
    use_teachers: bool = True

    def modules(self) -> Iterable[nn.Module]:
        """The head."""
        return (self.head,)

    def __call__(self, generator: LoRAGenerator, batch: TrainingBatch, step: int) -> tuple[Tensor, dict[str, float]]:
        """As `Objective`."""
        generated = generator(conditions_of(batch))
        computed = self.meter.deltas(generated) if self.loss.due(step) else None
        teachers = teachers_of(batch) if self.use_teachers else None
        loss, parts = self.loss(self.head, generated, deltas_of(batch), computed, teachers)
        return loss, parts | {"base_forwards": 0 if computed is None else len(generated)}


def teachers_of(batch: TrainingBatch) -> Sequence[LoRAWeights]:
    """The teachers of a batch.

    Raises:
        ConfigError: a group has none.
    """
    missing = [group.task_id for group in batch if group.teacher is None]
    if missing:
        raise ConfigError(f"no teacher for {missing[0]}; train it first, or use a loss that needs none")
    return [group.teacher for group in batch if group.teacher is not None]


def deltas_of(batch: TrainingBatch) -> Tensor:
    """The teachers' deltas of a batch, (groups, probes, layers, hidden).

    Raises:
        ConfigError: a group has none.
    """
    missing = [group.task_id for group in batch if group.delta is None]
    if missing:
        raise ConfigError(f"no delta for {missing[0]}; compute the teachers' deltas first")
    return torch.stack([group.delta for group in batch if group.delta is not None])


def conditions_of(batch: TrainingBatch) -> Tensor:
    """The conditions of a batch, (groups, condition_size).

    Raises:
        ConfigError: a group has none, which would pair later groups with wrong teachers.
    """
    missing = [group.task_id for group in batch if group.condition is None]
    if missing or not batch:
        raise ConfigError(f"no condition for {missing[0]}; every group needs one" if missing else "no groups")
    return torch.stack([group.condition for group in batch if group.condition is not None])
