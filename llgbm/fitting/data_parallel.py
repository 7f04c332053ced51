"""Data-parallel training: every process takes a share of a step's groups, and gradients are summed over processes.

The result is that of a single process, up to the order of float32 sums. The loss of a batch is the mean of the losses
of its shares, weighted by `Objective.weight`. So each process scales its loss by its share of the weight before the
backward pass, and the sums over processes are the loss and gradients of the whole batch. In the same way a process may
compute its share in pieces, one after the other (gradient accumulation).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from llgbm.errors import ConfigError
from llgbm.packed.batch import TrainingBatch


class ProcessGroup(Protocol):
    """The processes that train together; `training.runs.parallel` makes one with accelerate."""

    @property
    def rank(self) -> int:
        """Index of this process, from 0."""
        ...

    @property
    def size(self) -> int:
        """Number of processes."""
        ...

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of `tensor` over all processes, the same on each of them."""
        ...


def share_of(batch: TrainingBatch, group: ProcessGroup) -> TrainingBatch:
    """The groups of a batch for this process: every `size`-th, so that shares have about equal cost.

    Raises:
        ConfigError: there are fewer groups than processes.
    """
    if len(batch) < group.size:
        raise ConfigError(
            f"a batch of {len(batch)} groups cannot be shared by {group.size} processes; take more groups a step"
        )
    return batch[group.rank :: group.size]


class Alone:
    """A process group of one."""

    rank, size = 0, 1

    def sum(self, tensor: Tensor) -> Tensor:
        """`tensor` itself."""
        return tensor


def backward_in_pieces(
    compute: Callable[[TrainingBatch], tuple[Tensor, dict[str, float]]],
    weigh: Callable[[TrainingBatch], float],
    pieces: Sequence[TrainingBatch],
    parameters: Iterable[nn.Parameter],
    group: ProcessGroup,
) -> tuple[Tensor, dict[str, float]]:
    """Run the backward pass of each piece of this process's share; then every process has the whole batch's gradients.

    Only one piece's graph is in memory at a time. A parameter without a gradient in any process keeps None, so the
    optimiser skips it, as in a single process.

    Args:
        compute: piece -> loss (scalar) and its parts, with the same names for every piece. Integers are counts and are
            summed; other parts are means, averaged by weight.
        weigh: weight of a piece, see `Objective.weight`.
        pieces: of this process's share, at least one.
        parameters: the trained parameters.

    Returns:
        Loss (scalar, without graph) and parts of the whole batch.
    """
    weights = [weigh(piece) for piece in pieces]
    total = float(group.sum(torch.tensor(sum(weights), dtype=torch.float64)))
    loss = torch.zeros(())
    sums: dict[str, float] = {}
    for piece, weight in zip(pieces, weights, strict=True):
        piece_loss, parts = compute(piece)
        scaled = piece_loss * (weight / total)
        scaled.backward()
        loss = loss + scaled.detach()
        for name, value in parts.items():
            share = value if isinstance(value, int) else value * (weight / total)
            sums[name] = sums.get(name, 0) + share
    # every process must sum the same parameters, even those for which it has no gradient
    trained = [p for p in parameters if p.requires_grad]
    has = group.sum(torch.tensor([float(p.grad is not None) for p in trained]))
    reached = [p for p, count in zip(trained, has.tolist(), strict=True) if count]
    if reached and group.size > 1:  # one sum over all gradients, joined to one vector
        flat = group.sum(torch.cat([_gradient(p).flatten() for p in reached]))
        for parameter, gradient in zip(reached, flat.split([p.numel() for p in reached]), strict=True):
            parameter.grad = gradient.view_as(parameter)
    whole = group.sum(torch.tensor([float(value) for value in sums.values()], dtype=torch.float64)).tolist()
    named = zip(sums.items(), whole, strict=True)
    return group.sum(loss), {name: int(w) if isinstance(value, int) else w for (name, value), w in named}


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
