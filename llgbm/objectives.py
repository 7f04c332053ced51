"""Objectives: what `train` minimises. Each makes the batch's adapters once and reads what the base does with them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from llgbm.base import Base
from llgbm.batches import TaskGroup, TrainingBatch
from llgbm.functional import FunctionalLoRA
from llgbm.generator import LoRAGenerator
from llgbm.lora import LoRAWeights
from llgbm.packing import Row, pack
from llgbm.task_losses import label_logits, sft_loss


class TaskObjective:
    """Task loss (SFT): cross entropy of the answers, every group with its own generated adapter.

    Args:
        core_penalty: weight of the squared departure of the generated cores from the shared ones, a mean over rows,
            which keeps adapters of vague prompts near the shared adapter.
        recompute: save memory by running each layer once more in the backward pass, see `llgbm.recompute`.
    """

    def __init__(
        self, base: Base, *, label_smoothing: float = 0.05, core_penalty: float = 0.0, recompute: bool = False
    ) -> None:
        self._base, self._functional = base, FunctionalLoRA(base.model)
        self._label_smoothing, self._core_penalty = label_smoothing, core_penalty
        self._recompute = recompute

    def modules(self) -> Iterable[nn.Module]:
        """None: only the generator is trained."""
        return ()

    def weight(self, batch: TrainingBatch) -> float:
        """Rows of the batch, over which the loss is a mean."""
        return float(sum(len(group.rows) for group in batch))

    def __call__(self, generator: LoRAGenerator, batch: TrainingBatch, step: int) -> tuple[Tensor, dict[str, float]]:
        """The loss, a mean over rows in nats, with its parts and how many rows and tokens the base has read."""
        weights, rows, penalty = generated_groups(generator, batch)
        packed = pack(rows)
        logits = label_logits(self._base, self._functional, packed, weights, recompute=self._recompute)
        loss = sft_loss(logits, packed, label_smoothing=self._label_smoothing)
        size = {"rows": len(packed.last_index), "tokens": packed.num_tokens}
        return loss + self._core_penalty * penalty, {
            "sft": float(loss.detach()),
            "core": float(penalty.detach()),
            **size,
        }


def generated_groups(
    generator: LoRAGenerator, batch: TrainingBatch
) -> tuple[list[LoRAWeights], list[list[Row]], Tensor]:
    """Adapters and rows of a batch, group by group; groups without a condition have the shared adapter and come last.

    Returns:
        adapters, rows, and the squared departure of the generated cores from the shared ones (scalar): for each group a
        mean over its cores' entries, 0 without a condition, then a mean over rows.
    """
    conditioned = [(group, group.condition) for group in batch if group.condition is not None]
    plain = [group for group in batch if group.condition is None]
    weights: list[LoRAWeights] = []
    penalty = torch.zeros(())
    if conditioned:
        q, p = generator.cores(torch.stack([condition for _, condition in conditioned]))
        weights += generator.materialise(q, p)
        away = (q - generator.q0).square().mean((1, 2, 3)) + (p - generator.p0).square().mean((1, 2, 3))
        rows = torch.tensor([float(len(group.rows)) for group, _ in conditioned])
        penalty = away @ rows / sum(len(group.rows) for group in batch)
    if plain:
        weights += [generator.shared_adapter()] * len(plain)
    return weights, [list(group.rows) for group in [*(g for g, _ in conditioned), *plain]], penalty


__all__ = ["TaskGroup", "TaskObjective", "generated_groups"]
