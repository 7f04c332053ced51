"""Ranks the contexts of an adapter by accuracy, for requests near to the training prompts and far from them.

The measured prompts are sorted by their similarity to the nearest training prompt and cut into bins of equal number.
In each bin every context gets a scale: 1, the whole adapter, unless the best scale is better by more than one standard
error (as the rule of Breiman and others, Classification and Regression Trees, 1984). The contexts are ranked by mean
accuracy; among equals the one with fewer tokens wins. Training tasks and other tasks have equal total weight, whatever
their numbers. More bins follow the distance better, but the choice in a small bin is mostly noise. So the number of
bins is the one whose choices have the highest accuracy on prompts that they were not made from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llgbm.conditioning.context_choice import CONTEXTS, Context, ContextBin, ContextSetting, ranking_in
from llgbm.errors import ConfigError

GROUPS = (("training tasks, unseen wordings", True), ("kinds kept back", False))
"""Groups of tasks in the result, and whether the generator was trained on them."""
_SMALLEST_STEP = 1e-4
"""Similarities are written with four digits; nearer bins would coincide."""
_ROUNDING = 1e-9


@dataclass(frozen=True)
class ContextPoint:
    """One prompt whose adapter was measured in several contexts, at several scales in each.

    Attributes:
        trained: whether the generator was trained on its task.
        similarity: cosine of the adapter's condition with the nearest training prompt.
        accuracy: fraction of right answers by context and scale, 0 to 1.
    """

    trained: bool
    similarity: float
    accuracy: Mapping[tuple[Context, float], float]


def ranked_bins(points: Sequence[ContextPoint], most: int) -> tuple[ContextBin, ...]:
    """A ranking for each bin, by rising similarity; their number is chosen by leaving out one prompt at a time.

    Args:
        points: all measured in the same contexts and scales.
        most: maximum number of bins; among equally good numbers the smallest is taken.

    Raises:
        ConfigError: there are no points.
    """
    if not points:
        raise ConfigError("a choice of context needs prompts that were measured; measure more tasks")
    return _bins(
        points, max(range(1, most + 1), key=lambda count: (round(_left_out_accuracy(points, count), 4), -count))
    )


def _bins(points: Sequence[ContextPoint], count: int) -> tuple[ContextBin, ...]:
    """At most `count` bins; fewer if prompts have about equal similarity."""
    similarity, weights = np.array([p.similarity for p in points]), _weights(points)
    places = np.quantile(similarity, np.linspace(0, 1, count, endpoint=False)).round(4)
    starts = [places[0], *(b for a, b in pairwise(places) if b - a >= _SMALLEST_STEP)]
    member = np.maximum(np.searchsorted(starts, similarity, side="right") - 1, 0)
    return tuple(
        ContextBin(float(start), _ranking([points[int(i)] for i in inside], weights[inside]))
        for number, start in enumerate(starts)
        if len(inside := np.flatnonzero(member == number))
    )


def _left_out_accuracy(points: Sequence[ContextPoint], count: int) -> float:
    """Accuracy of the first choice for each prompt, made from all other prompts; 0 with a single prompt."""
    if len(points) == 1:
        return 0.0
    found = []
    for number, point in enumerate(points):
        first = ranking_in(_bins([*points[:number], *points[number + 1 :]], count), point.similarity)[0]
        found.append(point.accuracy[first.context, first.scale])
    return float(np.average(found, weights=_weights(points)))


def accuracy_table(points: Sequence[ContextPoint], bins: Sequence[ContextBin]) -> dict[str, Any]:
    """For each group of tasks: their number, mean accuracy by context and scale, and that of `auto` with these bins."""
    found = {}
    for name, trained in GROUPS:
        mine = [p for p in points if p.trained == trained]
        if not mine:
            continue
        each: dict[str, dict[str, float]] = {}
        for context, scale in mine[0].accuracy:
            mean = float(np.mean([p.accuracy[context, scale] for p in mine]))
            each.setdefault(context, {})[f"{scale:g}"] = round(mean, 4)
        # a calibration task has all texts, so that `auto` takes the first setting of its bin
        best = [ranking_in(bins, p.similarity)[0] for p in mine]
        auto = [p.accuracy[one.context, one.scale] for p, one in zip(mine, best, strict=True)]
        found[name] = {"n": len(mine), "accuracy": each, "auto": round(float(np.mean(auto)), 4)}
    return found


def _ranking(points: Sequence[ContextPoint], weights: NDArray[np.float64]) -> tuple[ContextSetting, ...]:
    shares = weights / weights.sum()
    found = []
    for context in CONTEXTS:
        by_scale = {
            scale: np.array([p.accuracy[context, scale] for p in points])
            for name, scale in points[0].accuracy
            if name == context
        }
        if by_scale:
            scale = _scale(by_scale, shares)
            found.append(ContextSetting(context, scale, round(float(shares @ by_scale[scale]), 4)))
    return tuple(sorted(found, key=lambda setting: -(setting.accuracy or 0.0)))  # stable: fewer tokens first


def _scale(by_scale: Mapping[float, NDArray[np.float64]], shares: NDArray[np.float64]) -> float:
    """The best scale, or 1 if that is at most one standard error behind it.

    Args:
        by_scale: accuracies (n,) of the same prompts at each scale.
        shares: weights (n,) of the prompts, with sum 1.
    """
    best = max(by_scale, key=lambda scale: (round(float(shares @ by_scale[scale]), 4), -abs(1 - scale)))
    if 1.0 not in by_scale:
        return best
    behind = by_scale[best] - by_scale[1.0]
    mean = float(shares @ behind)
    error = float(np.sqrt(np.square(shares * (behind - mean)).sum()))
    return 1.0 if mean <= error + _ROUNDING else best


def _weights(points: Sequence[ContextPoint]) -> NDArray[np.float64]:
    """One weight for each point, with sum 1; both kinds of tasks have equal total weight if both exist."""
    trained = np.array([p.trained for p in points])
    counts = np.where(trained, trained.sum(), (~trained).sum())
    shares: NDArray[np.float64] = 1 / counts / len(set(trained.tolist()))
    return shares
