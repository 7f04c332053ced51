"""Fits `llgbm.conditioning.task_detector`, which tells texts that ask for a task from others. Needs no rows, no base.

Positive texts are the wordings that the generator was trained on, and spans of one to six words of them, since people
write "translate to French" as often as a sentence. Negative texts are gibberish and small talk. The fit is a logistic
regression, which is convex; both classes have equal weight.

A generator makes some adapter for any text, and a wrong one harms the base's answers. The detector learns when to leave
the base unchanged. Bare inputs of tasks are not negatives: words such as "French" occur in inputs too, and a user who
types them means something.
"""

from __future__ import annotations

import random
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from llgbm.checkpoint import Checkpoint
from llgbm.conditioning.task_detector import TaskDetector
from llgbm.prompting import TextEncoder, noisy

_NULLS = 2000
"""Number of negative texts."""
_SPANS_PER_TASK = 3
_NOISE = 0.2
"""Length of the noise that is added to a second copy of each condition, relative to the condition's own."""
_INVERSE_L2 = 1000.0
_SEED = 0


@dataclass(frozen=True)
class _Side:
    """Conditions (n, condition_size) of one kind, with the total weight `share`."""

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
    # conditions have length 1; this factor gives their entries size 1, as `TaskDetector` expects
    x = torch.cat(conditions).double().numpy() * checkpoint.generator.config.condition_size**0.5
    y = np.concatenate([np.full(len(c), side is not sides[-1]) for c, side in zip(conditions, sides, strict=True)])
    weight = np.concatenate([np.full(len(c), s.share / len(c)) for c, s in zip(conditions, sides, strict=True)])
    fitted = LogisticRegression(C=_INVERSE_L2, max_iter=2000).fit(x, y, sample_weight=weight)
    return TaskDetector(torch.from_numpy(fitted.coef_[0]).float(), torch.tensor(float(fitted.intercept_[0])))


def detector_quality(
    detector: TaskDetector, groups: Mapping[str, Sequence[str]], encoder: TextEncoder
) -> dict[str, dict[str, float]]:
    """For each group of texts: their number, the mean probability, and the fraction classified as asking for a task."""
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
    """One to six consecutive words of a description, sometimes in lower case, without a full stop."""
    words = description.rstrip(".").split()
    length = min(len(words), rng.randint(1, 6))
    start = rng.randint(0, len(words) - length) if rng.random() < 0.5 else 0
    text = " ".join(words[start : start + length])
    return text.lower() if rng.random() < 0.5 else text


SMALL_TALK = (
    "hello", "hi there", "good morning", "how are you?", "thanks", "thank you very much", "ok", "yes", "no", "maybe",
    "never mind", "what?", "hmm", "see you later", "nice weather today", "I am tired", "who are you?", "test",
    "testing", "asdf", "foo bar baz", "lol", "please", "sorry", "good job", "I don't know", "what do you think?",
    "tell me more", "...", "?", "nothing", "bye", "my name is Sam", "it is late", "I like trains", "that was fun",
    "let's go", "the adapter", "something", "do it", "a task", "whatever", "do nothing", "no task",
    "leave everything as it is",
)  # fmt: skip

_SYLLABLES = tuple(consonant + vowel for consonant in "bcdfgklmnprstvwz" for vowel in "aeiou")
_KEYS = string.ascii_lowercase + string.digits + "#%/&+=-_;:!?"


def null_prompts(count: int, seed: int) -> list[str]:
    """`count` texts, alternately gibberish and small talk; deterministic for a seed."""
    rng = random.Random(seed)
    return [rng.choice(SMALL_TALK) if i % 2 else gibberish(rng) for i in range(count)]


def gibberish(rng: random.Random) -> str:
    """One to seven words of random keys, syllables or letters, or of one repeated key."""
    kind, words = rng.randrange(4), rng.randint(1, 7)
    if kind == 0:
        return " ".join("".join(rng.choices(_KEYS, k=rng.randint(2, 9))) for _ in range(words))
    if kind == 1:
        return " ".join("".join(rng.choices(_SYLLABLES, k=rng.randint(1, 4))) for _ in range(words))
    if kind == 2:
        return " ".join("".join(rng.choices(string.ascii_lowercase, k=rng.randint(2, 8))) for _ in range(words))
    return " ".join(rng.choice(_KEYS) * rng.randint(1, 5) for _ in range(words))
