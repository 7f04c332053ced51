"""Which texts ask for a task? Fits `llgbm.conditioning.task_detector` on prompts alone: no row, no base.

Texts that ask for nothing are gibberish and small talk. Texts that do are the wordings that the generator was trained
on, and spans of one to six words of them, since people write "translate to French" as often as a sentence. The fit is a
logistic regression, convex, and the two sides have equal weight.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from llgbm.checkpoint import Checkpoint
from llgbm.conditioning.task_detector import TaskDetector
from llgbm.prompting import TextEncoder, noisy
from training.recipe.null_prompts import null_prompts

_NULLS = 2000
_SPANS_PER_TASK = 3
_NOISE = 0.2
_INVERSE_L2 = 1000.0
_SEED = 0


@dataclass(frozen=True)
class _Side:
    """Conditions (n, condition_size) of one kind, which together weigh `share`."""

    conditions: Tensor
    share: float


def fit_detector(checkpoint: Checkpoint, encoder: TextEncoder) -> TaskDetector:
    """A detector for the tasks that the generator of `checkpoint` was trained on."""
    rng = random.Random(_SEED)
    tasks = checkpoint.manifest.tasks
    spans = [short_form(rng.choice(task.descriptions), rng) for task in tasks for _ in range(_SPANS_PER_TASK)]
    sides = [
        _Side(checkpoint.prompt_index.embeddings, 0.7),
        _Side(encoder.encode(spans), 0.3),
        _Side(encoder.encode(null_prompts(_NULLS, _SEED)), 1.0),
    ]
    generator = torch.Generator().manual_seed(_SEED)
    normal = [torch.randn(side.conditions.shape, generator=generator) for side in sides]
    conditions = [
        torch.cat([side.conditions, noisy(side.conditions, n, _NOISE)]) for side, n in zip(sides, normal, strict=True)
    ]
    x = torch.cat(conditions).double().numpy() * checkpoint.generator.config.condition_size**0.5
    y = np.concatenate([np.full(len(c), side is not sides[-1]) for c, side in zip(conditions, sides, strict=True)])
    weight = np.concatenate([np.full(len(c), s.share / len(c)) for c, s in zip(conditions, sides, strict=True)])
    fitted = LogisticRegression(C=_INVERSE_L2, max_iter=2000).fit(x, y, sample_weight=weight)
    return TaskDetector(torch.from_numpy(fitted.coef_[0]).float(), torch.tensor(float(fitted.intercept_[0])))


def detector_quality(
    detector: TaskDetector, groups: Mapping[str, Sequence[str]], encoder: TextEncoder
) -> dict[str, dict[str, float]]:
    """For each group of texts: their number, the mean probability, and the share that is taken for a task."""
    found = {}
    for name, texts in groups.items():
        probability = detector(encoder.encode(texts))
        taken = float((probability >= 0.5).float().mean())
        found[name] = {
            "n": len(texts),
            "mean": round(float(probability.mean()), 4),
            "taken_for_a_task": round(taken, 4),
        }
    return found


def short_form(description: str, rng: random.Random) -> str:
    """One to six words of a description as they stand in it, at times in lower case, without a full stop."""
    words = description.rstrip(".").split()
    length = min(len(words), rng.randint(1, 6))
    start = rng.randint(0, len(words) - length) if rng.random() < 0.5 else 0
    text = " ".join(words[start : start + length])
    return text.lower() if rng.random() < 0.5 else text
