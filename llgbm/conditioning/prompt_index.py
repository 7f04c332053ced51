"""The distance of a prompt from the training prompts, and the confidence at that distance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llgbm.errors import CheckpointError


@dataclass(frozen=True, eq=False)
class PromptIndex:
    """Embeddings of the training descriptions, to tell how far a new prompt is from the training data.

    Attributes:
        embeddings: (N, condition_size) float32, L2-normalised.
        task: (N,) int64, index into the manifest's tasks.
    """

    embeddings: Tensor
    task: Tensor

    def nearest(self, condition: Tensor, count: int = 3) -> list[tuple[int, float]]:
        """The `count` nearest tasks of a normalised condition (condition_size,): (task index, cosine), best first."""
        if not len(self.task):
            return []
        similarity = self.embeddings @ condition.to(self.embeddings)  # (N,), cosines
        # (tasks,): the best cosine of each task's descriptions
        best = torch.full((int(self.task.max()) + 1,), -1.0).scatter_reduce(0, self.task, similarity, "amax")
        values, indices = best.topk(min(count, len(self.task.unique())))
        return [(int(i), float(v)) for i, v in zip(indices, values, strict=True)]


def require_curve(curve: Mapping[str, Any]) -> None:
    """Check a manifest's confidence curve on load, so that no request fails on it.

    Raises:
        CheckpointError: a part is missing, the similarities do not rise, or a confidence is not between 0 and 1.
    """
    try:
        similarity, confidence = [float(x) for x in curve["similarity"]], [float(y) for y in curve["confidence"]]
        threshold = float(curve["threshold"])
        rising = all(x < y for x, y in pairwise(similarity))
        fits = bool(similarity) and rising and len(similarity) == len(confidence)
        fits = fits and all(0 <= y <= 1 for y in [*confidence, threshold])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"the manifest's confidence needs similarity, confidence and threshold: {error!r}"
        ) from error
    if not fits:
        raise CheckpointError(
            "the manifest's confidence needs rising similarities, and a confidence between 0 and 1 for each; "
            "calibrate again"
        )


def confidence_at(similarity: float, curve: Mapping[str, Any]) -> float:
    """The confidence at a cosine with the nearest training prompt: linear between the curve's points, constant beyond.

    Args:
        curve: `similarity`, rising, and `confidence` for each, see `llgbm.checkpoint.GeneratorManifest`.
    """
    return float(np.interp(similarity, curve["similarity"], curve["confidence"]))
