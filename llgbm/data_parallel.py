"""Data-parallel training: every process takes a share of a step's groups, and gradients are added up over processes.

The result is the one of a single process, up to the order of float32 sums. The law behind it: the loss of a batch is
the mean of the losses of its shares, weighted by `Objective.weight`. So each process scales its loss by its share of
the weight before the backward pass, and sums of losses and gradients over processes are those of the whole batch.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor, nn

from llgbm.batches import TrainingBatch
from llgbm.errors import ConfigError


class ProcessGroup(Protocol):
    """The processes that train together; `training.parallel` makes one with accelerate."""

    @property
    def rank(self) -> int:
        """Number of this process, from 0."""
        ...

    @property
    def size(self) -> int:
        """How many processes there are."""
        ...

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of `tensor` over all processes, the same on each of them."""
        ...


def share_of(batch: TrainingBatch, group: ProcessGroup) -> TrainingBatch:
    """The groups of a batch that this process takes: every `size`-th, so that shares are of about equal cost.

    Raises:
        ConfigError: there are fewer groups than processes.
    """
    if len(batch) < group.size:
        raise ConfigError(
            f"a batch of {len(batch)} groups cannot be shared by {group.size} processes; take more groups a step"
        )
    return batch[group.rank :: group.size]


def backward_of_share(
    loss: Tensor,
    parts: dict[str, float],
    weight: float,
    parameters: Iterable[nn.Parameter],
    group: ProcessGroup,
) -> tuple[Tensor, dict[str, float]]:
    """Run the backward pass of this process's share; afterwards every process has the gradients of the whole batch.

    A parameter that no process has a gradient for keeps None, so that the optimiser passes over it as in a single
    process.

    Args:
        loss: of the share, scalar.
        parts: of the share; whole numbers are counts and are added up, others are means.
        weight: of the share, from `Objective.weight`.

    Returns:
        Loss (scalar, without graph) and parts of the whole batch.
    """
    names = list(parts)
    counted = [weight, *(parts[n] if isinstance(parts[n], int) else weight * parts[n] for n in names)]
    total, *sums = group.sum(torch.tensor(counted, dtype=torch.float64)).tolist()
    scaled = loss * (weight / total)
    scaled.backward()
    trained = [p for p in parameters if p.requires_grad]
    has = group.sum(torch.tensor([float(p.grad is not None) for p in trained]))
    reached = [p for p, count in zip(trained, has.tolist(), strict=True) if count]
    if reached:
        flat = group.sum(torch.cat([_gradient(p).flatten() for p in reached]))
        for parameter, gradient in zip(reached, flat.split([p.numel() for p in reached]), strict=True):
            parameter.grad = gradient.view_as(parameter)
    whole = {n: int(s) if isinstance(parts[n], int) else s / total for n, s in zip(names, sums, strict=True)}
    return group.sum(scaled.detach()), whole


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
