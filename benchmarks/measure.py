"""How every benchmark measures: warm-up, arms in turns, medians with their spread."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Result:
    """One number of a benchmark.

    Attributes:
        value: what the name says, in `unit`; a ratio of arms where there is more than one.
        arms: arm -> median, in `arm_unit`.
        n: measurements of each arm.
        spread: arm -> (smallest, largest).
    """

    name: str
    value: float
    unit: str
    higher_is_better: bool
    arms: dict[str, float]
    arm_unit: str
    n: int
    spread: dict[str, tuple[float, float]]

    def to_dict(self) -> dict[str, Any]:
        """All fields, for JSON."""
        return asdict(self)


def interleaved(arms: Mapping[str, Callable[[], object]], *, n: int, warm_up: int = 2) -> dict[str, list[float]]:
    """Seconds of each arm, `n` times, the arms in turns so that a slow moment of the machine meets them all."""
    for _ in range(warm_up):
        for run in arms.values():
            run()
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(n):
        for name, run in arms.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def summary(
    name: str,
    seconds: Mapping[str, list[float]],
    value: Callable[[dict[str, float]], float],
    *,
    unit: str,
    higher: bool,
) -> Result:
    """A result from interleaved seconds; arms are reported in milliseconds, `value` gets their medians in seconds."""
    medians = {arm: statistics.median(times) for arm, times in seconds.items()}
    spread = {arm: (round(min(t) * 1e3, 3), round(max(t) * 1e3, 3)) for arm, t in seconds.items()}
    arms = {arm: round(m * 1e3, 3) for arm, m in medians.items()}
    n = min(len(times) for times in seconds.values())
    return Result(name, round(value(medians), 4), unit, higher, arms, "ms", n, spread)
