"""Ablations: the same fit with several kinds of loss and several seeds, and what of the difference is noise.

This part knows nothing of how an arm is run; it is handed a callable for that. So arms can run in this process, in
others, or have been run yesterday.
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
    """Which arms an ablation has: every kind with every seed."""

    kinds: tuple[str, ...] = KINDS
    """Kinds of loss; the names are handed to the callable that runs an arm."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of initialisation and of every batch."""

    def __post_init__(self) -> None:
        for name, values in (("kinds", self.kinds), ("seeds", self.seeds)):
            if not values or len(set(values)) != len(values):
                raise ConfigError(f"{name} needs at least one value, and none twice, not {list(values)}")


@dataclass(frozen=True)
class Arm:
    """One run: its kind of loss, its seed, and what it came to."""

    kind: str
    seed: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Spread:
    """A metric over seeds.

    Attributes:
        mean: over the seeds.
        deviation: sample standard deviation; None for a single seed, of which nothing is known.
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
        """For each kind and metric, mean and standard deviation over its seeds."""
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
    """Run every kind with every seed, seed by seed, so that a stopped ablation has compared all kinds on some.

    Args:
        run_arm: runs one arm; must give the same result whatever ran before it.

    Raises:
        ConfigError: an arm gives other metrics than the arms before it, or one that is not finite.
    """
    done: dict[tuple[str, int], Arm] = {}
    names: set[str] | None = None
    for seed in config.seeds:
        for kind in config.kinds:
            arm = Arm(kind, seed, dict(run_arm(kind, seed)))
            if names is not None and set(arm.metrics) != names:
                raise ConfigError(
                    f"the arm ({kind}, seed {seed}) gives {sorted(arm.metrics)}, those before it {sorted(names)}"
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
