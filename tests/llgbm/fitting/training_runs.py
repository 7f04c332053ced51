"""Training runs for tests of the loop: an objective without a base, and runs that stop on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from llgbm.generator import LoRAGenerator
from llgbm.packed.batch import TaskGroup, TrainingBatch
from llgbm.training import TrainingConfig
from tests.small_generator import conditions

CONFIG = TrainingConfig(steps=12, learning_rate=1e-2, warmup_steps=3, decay_fraction=0.25, checkpoint_seconds=-1.0)
"""A state after every step."""


class Pull:
    """Pulls every entry of every adapter towards 1, and trains an extra module."""

    def __init__(self, change: Callable[[int, Tensor], Tensor] = lambda step, loss: loss) -> None:
        self.extra = nn.Linear(3, 1)
        with torch.no_grad():
            self.extra.weight.fill_(0.5)
            self.extra.bias.zero_()
        self._change = change

    def modules(self) -> Iterable[nn.Module]:
        return [self.extra]

    def weight(self, batch: TrainingBatch) -> float:
        return float(len(batch))

    def __call__(self, generator: LoRAGenerator, batch: TrainingBatch, step: int) -> tuple[Tensor, dict[str, float]]:
        adapters = generator(torch.stack([group.condition for group in batch if group.condition is not None]))
        terms = [(t - 1).square().mean() for adapter in adapters for t in adapter.tensors]
        loss = self._change(step, torch.stack(terms).mean() + self.extra(torch.ones(3)).square().mean())
        return loss, {"pull": float(loss.detach())}


def batch_of(step: int) -> TrainingBatch:
    return [TaskGroup(f"task {i}", condition) for i, condition in enumerate(conditions(2, seed=step))]


class StoppedError(Exception):
    """Simulates the kill of a run."""


def stop_at(step: int) -> Callable[[int], TrainingBatch]:
    def batches(current: int) -> TrainingBatch:
        if current == step:
            raise StoppedError
        return batch_of(current)

    return batches


def parameters(generator: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in generator.named_parameters()}


def require_equal(left: nn.Module, right: nn.Module) -> None:
    for (name, p), q in zip(left.named_parameters(), right.parameters(), strict=True):
        assert torch.equal(p, q), name
