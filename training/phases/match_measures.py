"""Compares generated adapters with their teachers: cosine and size of deltas, error of weights, and baselines.

The delta cosine is computed at each layer, between means over probes, and averaged over layers. It is measured with
descriptions that were never trained on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor

from llgbm.delta import DeltaMeter, delta_cosine
from llgbm.generator import LoRAGenerator
from llgbm.lora import LoRAWeights
from llgbm.matching.losses import WeightLoss

_BATCH = 8
"""Adapters per pass."""


@dataclass(frozen=True, eq=False)
class Case:
    """One adapter with one description.

    Attributes:
        condition: (condition_size,), from the description.
        teacher: the adapter's weights.
        delta: (probes, layers, hidden), of the teacher.
    """

    adapter_id: str
    task: str
    description: str
    condition: Tensor
    teacher: LoRAWeights
    delta: Tensor


@dataclass(frozen=True)
class Score:
    """Measurements of one case. d is the delta of the generated adapter and d' that of its teacher.

    Attributes:
        cosine: cosine of d with d'.
        wrong_cosine: cosine of d with the delta of another task's teacher, the next one among the cases.
        error: ||d - d'||^2 / ||d'||^2 of the mean deltas, averaged over layers.
        norm_ratio: ||d|| / ||d'||, averaged over layers.
        weight_error: relative squared error of the products BA.
    """

    adapter_id: str
    cosine: float
    wrong_cosine: float
    error: float
    norm_ratio: float
    weight_error: float


METRICS = ("cosine", "wrong_cosine", "error", "norm_ratio", "weight_error")


def score_cases(generator: LoRAGenerator, meter: DeltaMeter, cases: Sequence[Case]) -> list[Score]:
    """Generate an adapter for each case, compute its delta, and compare it with the teacher."""
    scores = []
    for start in range(0, len(cases), _BATCH):
        members = cases[start : start + _BATCH]
        with torch.no_grad():
            made = generator(torch.stack([case.condition for case in members]))
            deltas = meter.deltas(made).mean(1)  # (batch, layers, hidden)
        for place, (case, adapter, delta) in enumerate(zip(members, made, deltas, strict=True)):
            wanted = case.delta.mean(0)
            sizes = wanted.norm(dim=-1).clamp_min(1e-12)  # (layers,); the floor only prevents division by zero
            scores.append(
                Score(
                    adapter_id=case.adapter_id,
                    cosine=delta_cosine(delta, wanted),
                    wrong_cosine=delta_cosine(delta, _other(cases, start + place).delta.mean(0)),
                    error=float(((delta - wanted).norm(dim=-1) / sizes).square().mean()),
                    norm_ratio=float((delta.norm(dim=-1) / sizes).mean()),
                    weight_error=WeightLoss()([adapter], [case.teacher])[1]["weight"],
                )
            )
    return scores


def summarise(scores: Sequence[Score], prefix: str) -> dict[str, float]:
    """Means of all metrics, first over an adapter's descriptions, then over adapters; empty without scores."""
    if not scores:
        return {}
    adapters = list(dict.fromkeys(score.adapter_id for score in scores))
    values = torch.tensor(
        [
            [sum(column) / len(column) for column in zip(*(_row(s) for s in scores if s.adapter_id == a), strict=True)]
            for a in adapters
        ],
        dtype=torch.float64,
    )
    return {f"{prefix}_{name}": float(value) for name, value in zip(METRICS, values.mean(0), strict=True)}


def baselines(cases: Sequence[Case], train: Sequence[Case], prefix: str) -> dict[str, float]:
    """Cosines without a generator: of the training teachers' mean delta, and of the nearest teacher's delta.

    The nearest teacher is the one with the most similar description. Adapters of the case's own task are excluded from
    both. Means as in `summarise`: first over an adapter's descriptions, then over adapters. Empty if no other task has
    a teacher.
    """
    mean: dict[str, list[float]] = {}
    nearest: dict[str, list[float]] = {}
    for case in cases:
        others = [t for t in train if t.task != case.task]
        if not others:
            return {}
        wanted = case.delta.mean(0)
        each = {t.adapter_id: t.delta.mean(0) for t in others}
        average = torch.stack(list(each.values())).mean(0)
        mean.setdefault(case.adapter_id, []).append(delta_cosine(average, wanted))
        similarity = torch.stack([t.condition for t in others]) @ case.condition
        found = others[int(similarity.argmax())].delta.mean(0)
        nearest.setdefault(case.adapter_id, []).append(delta_cosine(found, wanted))
    if not cases:
        return {}
    return {
        f"{prefix}_mean_teacher_cosine": _mean_of_means(mean),
        f"{prefix}_nearest_teacher_cosine": _mean_of_means(nearest),
    }


def _mean_of_means(values: Mapping[str, Sequence[float]]) -> float:
    return fmean(fmean(each) for each in values.values())


def _row(score: Score) -> tuple[float, ...]:
    return tuple(getattr(score, name) for name in METRICS)


def _other(cases: Sequence[Case], index: int) -> Case:
    """The next case of another task; the case itself if all have the same task."""
    later = [*cases[index + 1 :], *cases[:index]]
    return next((case for case in later if case.task != cases[index].task), cases[index])
