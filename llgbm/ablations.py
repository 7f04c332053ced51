"""Ablations: one fit for each kind of loss and each seed, with mean and spread over the seeds.

A callable runs each arm. So an arm can run in this process or in another, or come from an earlier run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from llgbm.errors import ConfigError

KINDS = ("weight", "delta", "multitask", "guided")
"""The losses of the method: teachers' weights, their deltas, both, and deltas guided by a head."""

RunArm = Callable[[str, int], Mapping[str, float]]
"""Runs the arm (kind, seed) and returns its metrics."""


@dataclass(frozen=True)
class AblationConfig:
    """The arms of an ablation: every kind with every seed."""

    kinds: tuple[str, ...] = KINDS
    """Kinds of loss, as the callable that runs an arm names them."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of initialisation and of every batch."""

    def __post_init__(self) -> None:
        for name, values in (("kinds", self.kinds), ("seeds", self.seeds)):
            if not values or len(set(values)) != len(values):
                raise ConfigError(f"{name} needs at least one value, and none twice, not {list(values)}")


@dataclass(frozen=True)
class Arm:
    """One run: its kind of loss, its seed and its metrics."""

    kind: str
    seed: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Spread:
    """A metric over seeds.

    Attributes:
        mean: over the seeds.
        deviation: sample standard deviation (n - 1); None for a single seed.
        count: number of seeds.
    """

    mean: float
    deviation: float | None
    count: int


@dataclass(frozen=True)
class Ablation:
    """All arms, in the order of kinds and then of seeds."""

    arms: tuple[Arm, ...]

    def summary(self) -> dict[str, dict[str, Spread]]:
        """Mean and standard deviation over the seeds, for each kind and metric."""
        kinds = dict.fromkeys(arm.kind for arm in self.arms)
        return {kind: _summary([arm.metrics for arm in self.arms if arm.kind == kind]) for kind in kinds}

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        summary = {
            kind: {name: {"mean": s.mean, "deviation": s.deviation, "count": s.count} for name, s in metrics.items()}
            for kind, metrics in self.summary().items()
        }
        return {
            "arms": [{"kind": a.kind, "seed": a.seed, "metrics": dict(a.metrics)} for a in self.arms],
            "summary": summary,
        }


def run_ablations(config: AblationConfig, run_arm: RunArm) -> Ablation:
    """Run every kind with every seed. Seeds are the outer loop, so a stopped ablation has all kinds of its first seeds.

    Args:
        run_arm: runs one arm; the result must not depend on earlier arms.

    Raises:
        ConfigError: an arm returns other metrics than earlier arms, or a metric that is not finite.
    """
    done: dict[tuple[str, int], Arm] = {}
    names: set[str] | None = None
    for seed in config.seeds:
        for kind in config.kinds:
            arm = Arm(kind, seed, dict(run_arm(kind, seed)))
            if names is not None and set(arm.metrics) != names:
                raise ConfigError(
                    f"the arm ({kind}, seed {seed}) gives {sorted(arm.metrics)}, earlier arms {sorted(names)}"
                )
            names = set(arm.metrics)
            broken = [name for name, value in arm.metrics.items() if not math.isfinite(value)]
            if broken:
                raise ConfigError(f"{broken[0]} of the arm ({kind}, seed {seed}) is {arm.metrics[broken[0]]}")
            done[kind, seed] = arm
    return Ablation(tuple(done[kind, seed] for kind in config.kinds for seed in config.seeds))


def _summary(runs: list[Mapping[str, float]]) -> dict[str, Spread]:
    spreads = {}
    for name in runs[0]:
        values = np.array([run[name] for run in runs], dtype=np.float64)
        deviation = float(values.std(ddof=1)) if len(values) > 1 else None
        spreads[name] = Spread(float(values.mean()), deviation, len(values))
    return spreads
