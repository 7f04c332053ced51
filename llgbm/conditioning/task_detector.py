"""Does a text ask for a task at all? A linear detector on conditions, which belongs to a generator's artefact.

A generator makes some adapter for any text, gibberish and greetings included. What asks for nothing is to leave the
base nearly as it is, so adapters made from descriptions are scaled by what the detector says.
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
        weight: (condition_size,) float32, for conditions scaled so that their entries have size one.
        bias: scalar tensor, in logits.

    Raises:
        ConfigError: a shape is another, or a number is not finite.
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
        """The probability (n,) that conditions (n, condition_size) float32 of length one ask for a task.

        Raises:
            ConfigError: the conditions have another size.
        """
        if conditions.dim() != 2 or conditions.shape[1] != len(self.weight):
            raise ConfigError(f"conditions of shape {tuple(conditions.shape)} for a detector of {len(self.weight)}")
        return (conditions @ self.weight * math.sqrt(len(self.weight)) + self.bias).sigmoid()
