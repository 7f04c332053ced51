"""TaskDetector: the probability that a text asks for a task, from its condition; part of a generator's artefact.

A generator makes an adapter for any text, gibberish and greetings included. Such a text should leave the base nearly
unchanged, so adapters made from descriptions are scaled by this probability.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from llgbm.errors import ConfigError


@dataclass(frozen=True, eq=False)
class TaskDetector:
    """A logistic regression, fitted by `training.recipe.task_detector`.

    Attributes:
        weight: (condition_size,) float32, for conditions scaled to entries of size 1.
        bias: scalar tensor, in logits.

    Raises:
        ConfigError: a wrong shape, or a value that is not finite.
    """

    weight: Tensor
    bias: Tensor

    def __post_init__(self) -> None:
        if self.weight.dim() != 1 or self.bias.dim() != 0:
            raise ConfigError(
                f"a detector has a vector and a scalar, not {tuple(self.weight.shape)} and {tuple(self.bias.shape)}"
            )
        if not bool(torch.isfinite(self.weight).all() & torch.isfinite(self.bias)):
            raise ConfigError("the detector has values that are not finite; fit it again")

    def __call__(self, conditions: Tensor) -> Tensor:
        """Probability (n,) that conditions (n, condition_size), float32 unit vectors, ask for a task.

        Raises:
            ConfigError: the conditions have another size.
        """
        if conditions.dim() != 2 or conditions.shape[1] != len(self.weight):
            raise ConfigError(f"conditions of shape {tuple(conditions.shape)} for a detector of {len(self.weight)}")
        # entries of a unit vector have size 1 / sqrt(d)
        return (conditions @ self.weight * math.sqrt(len(self.weight)) + self.bias).sigmoid()
