"""Fits the confidence curve: expected accuracy as a function of the similarity to the training prompts.

A prompt's similarity is its cosine with the nearest training prompt. The confidence is an isotonic regression of
accuracy on similarity (Zadrozny and Elkan 2002), so a nearer prompt never has lower confidence. It is fitted to means
of groups of prompts with about equal similarity, so that no end of the curve depends on a single prompt. Its
reliability is measured on each category with a curve that was fitted without this category.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.isotonic import IsotonicRegression

from llgbm.errors import ConfigError

_GROUPS = 16
"""Number of groups of equal size, by similarity."""
_SMALLEST_STEP = 1e-4
"""Knots are written with four digits; nearer ones would coincide."""


@dataclass(frozen=True)
class Point:
    """One prompt whose adapter was measured.

    Attributes:
        category: category of its task.
        similarity: cosine with the nearest training prompt.
        accuracy: fraction of right answers, 0 to 1.
    """

    category: str
    similarity: float
    accuracy: float


def confidence_curve(points: Sequence[Point], threshold: float) -> dict[str, Any]:
    """The value of `GeneratorManifest.confidence`: rising similarities with a confidence for each, and the threshold.

    Raises:
        ConfigError: the points have fewer than two different similarities.
    """
    groups = _groups(points)
    fitted = _fitted(groups)
    places = [group.similarity for group in groups]
    knots = [places[0], *(b for a, b in pairwise(places) if b - a >= _SMALLEST_STEP)]
    return {
        "similarity": [round(x, 4) for x in knots],
        "confidence": [round(float(y), 4) for y in fitted.predict(knots)],
        "threshold": threshold,
    }


def reliability(points: Sequence[Point], *, bins: int = 5) -> dict[str, Any]:
    """Compare confidences with accuracies; each category is predicted without its own points.

    Returns:
        `bins`: mean confidence, mean accuracy and number of prompts in bins of about equal size; `error`: the expected
        calibration error, the mean of |confidence - accuracy| weighted by number (Naeini et al. 2015); `spread`: the
        standard deviation of the confidences, 0 for a constant confidence.

    Raises:
        ConfigError: all points are of one category.
    """
    categories = sorted({p.category for p in points})
    if len(categories) < 2:
        raise ConfigError("all measured tasks are of one category; the reliability needs a second to predict it from")
    predicted = np.zeros(len(points))
    for category in categories:
        mine = [i for i, p in enumerate(points) if p.category == category]
        others = [p for p in points if p.category != category]
        predicted[mine] = _fitted(_groups(others)).predict([points[i].similarity for i in mine])
    accuracy = np.array([p.accuracy for p in points])
    order = np.argsort(predicted, kind="stable")
    found = [_bin(predicted[part], accuracy[part]) for part in np.array_split(order, bins) if len(part)]
    error = sum(b["n"] * abs(b["confidence"] - b["accuracy"]) for b in found) / len(points)
    return {"bins": found, "error": round(error, 4), "spread": round(float(predicted.std()), 4)}


def _fitted(groups: Sequence[_Group]) -> IsotonicRegression:
    if len({group.similarity for group in groups}) < 2:
        raise ConfigError("a curve needs prompts at two distances at least; measure more tasks")
    curve = IsotonicRegression(y_min=0.0, y_max=1.0, increasing=True, out_of_bounds="clip")
    weights = [group.prompts for group in groups]
    return curve.fit([g.similarity for g in groups], [g.accuracy for g in groups], sample_weight=weights)


class _Group(NamedTuple):
    """Means of prompts with about equal similarity, and their number."""

    similarity: float
    accuracy: float
    prompts: int


def _groups(points: Sequence[Point]) -> list[_Group]:
    ordered = sorted(points, key=lambda p: p.similarity)
    parts = np.array_split(np.arange(len(ordered)), min(_GROUPS, len(ordered)))
    return [
        _Group(
            float(np.mean([ordered[i].similarity for i in part])),
            float(np.mean([ordered[i].accuracy for i in part])),
            len(part),
        )
        for part in parts
    ]


def _bin(confidence: NDArray[np.float64], accuracy: NDArray[np.float64]) -> dict[str, Any]:
    return {
        "confidence": round(float(confidence.mean()), 4),
        "accuracy": round(float(accuracy.mean()), 4),
        "n": len(confidence),
    }
