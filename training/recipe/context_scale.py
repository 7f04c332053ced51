"""Chooses the scale of an adapter when the description of its task is in the context too.

Three values are chosen from a grid: a scale for requests near to the training prompts, a smaller or equal one for
requests far from them, and the similarity that separates the two. They maximise mean accuracy; training tasks and
other tasks have equal total weight, whatever their numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llgbm.errors import ConfigError

_PLACES = 16
"""Number of thresholds to try, at quantiles of the similarity."""


@dataclass(frozen=True)
class ContextScale:
    """The scale of requests with at least this similarity, and of those below it."""

    similarity: float
    far: float
    near: float

    def at(self, similarity: float) -> float:
        """The scale for a request with this cosine."""
        return self.near if similarity >= self.similarity else self.far


@dataclass(frozen=True)
class ContextPoint:
    """One prompt whose adapter was measured at several scales, with the prompt in the context.

    Attributes:
        trained: whether the generator was trained on its task.
        similarity: cosine with the nearest training prompt.
        accuracies: fraction of right answers at each scale, 0 to 1.
    """

    trained: bool
    similarity: float
    accuracies: tuple[float, ...]


def choose_scale(points: Sequence[ContextPoint], scales: Sequence[float]) -> ContextScale:
    """The best values of the grid; among equals, the scales nearest to 1.

    Args:
        points: from training tasks, other tasks, or both.
        scales: the scales of `ContextPoint.accuracies`, in the same order.

    Raises:
        ConfigError: there are no points.
    """
    if not points:
        raise ConfigError("a scale in context needs prompts that were measured; measure more tasks")
    similarity, weight = np.array([p.similarity for p in points]), _weights(points)
    weighted = weight * np.array([p.accuracies for p in points]).T  # (scales, points)

    def merit(scale: ContextScale) -> tuple[float, float]:
        near = similarity >= scale.similarity
        far_row, near_row = (weighted[list(scales).index(value)] for value in (scale.far, scale.near))
        accuracy = float(near_row[near].sum() + far_row[~near].sum())
        return round(accuracy, 9), -abs(1 - scale.far) - abs(1 - scale.near)

    places = np.quantile(similarity, np.linspace(0, 1, _PLACES)).round(4)
    pairs = [(far, near) for far, near in product(scales, repeat=2) if far <= near]
    return max((ContextScale(float(place), far, near) for place in places for far, near in pairs), key=merit)


def scale_table(points: Sequence[ContextPoint], scales: Sequence[float], chosen: ContextScale) -> dict[str, Any]:
    """Mean accuracy at every scale and at the chosen ones, for training tasks and for others, with their numbers."""
    found = {}
    for name, trained in (("training tasks, unseen wordings", True), ("kinds kept back", False)):
        mine = [p for p in points if p.trained == trained]
        if mine:
            at = [p.accuracies[list(scales).index(chosen.at(p.similarity))] for p in mine]
            each = {f"{s:g}": round(float(np.mean([p.accuracies[i] for p in mine])), 4) for i, s in enumerate(scales)}
            found[name] = {"n": len(mine), "accuracy": each, "chosen": round(float(np.mean(at)), 4)}
    return found


def _weights(points: Sequence[ContextPoint]) -> NDArray[np.float64]:
    """One weight for each point, with sum 1; both kinds of tasks have equal total weight if both exist."""
    trained = np.array([p.trained for p in points])
    counts = np.where(trained, trained.sum(), (~trained).sum())
    shares: NDArray[np.float64] = 1 / counts / len(set(trained.tolist()))
    return shares
