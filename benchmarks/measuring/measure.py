"""Shared measurement code of the benchmarks: pinned threads, warm-up, interleaved arms, medians with their spread."""

from __future__ import annotations

import os
import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

Seconds = dict[str, list[float]]
"""arm -> measured times, in the order of the rounds"""


@dataclass(frozen=True)
class Result:
    """One number of a benchmark.

    Attributes:
        value: the number, in `unit`; None if an arm that it needs could not run.
        arms: arm -> median, in `arm_unit`.
        n: measurements of each arm.
        spread: arm -> (smallest, largest).
        target: target of the value; None if the result only explains another one.
        missing: arm -> the reason why it could not run.
        note: information needed to interpret the number.
    """

    name: str
    value: float | None
    unit: str
    higher_is_better: bool
    arms: dict[str, float]
    arm_unit: str
    n: int
    spread: dict[str, tuple[float, float]]
    target: float | None = None
    missing: dict[str, str] = field(default_factory=dict)
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """All fields, for JSON."""
        return asdict(self)


def pin(threads: int) -> None:
    """Compute with `threads` threads, pinned to the same number of processors; child processes inherit the pinning."""
    torch.set_num_threads(threads)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


class Memory(NamedTuple):
    """Resident memory of a process in GB, 10^9 bytes: now, and the most that it had so far."""

    resident_gb: float
    highest_gb: float


def memory_of(process_id: int) -> Memory:
    """Memory of a process, from /proc, so on Linux only."""
    lines = Path(f"/proc/{process_id}/status").read_text("ascii").splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return Memory(*(int(fields[name].split()[0]) * 1024 / 1e9 for name in ("VmRSS", "VmHWM")))


def interleaved(arms: Mapping[str, Callable[[], object]], *, n: int, warm_up: int = 1) -> Seconds:
    """Seconds of each arm, measured `n` times. Arms take turns, so that a slow moment of the machine affects all.

    Each round begins with the next arm, so that the first place rotates.
    """
    for _ in range(warm_up):
        for run in arms.values():
            run()
    seconds: Seconds = {name: [] for name in arms}
    order = deque(arms.items())
    for _ in range(n):
        for name, run in order:
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
        order.rotate(-1)
    return seconds


def rates(seconds: Seconds, amount: Mapping[str, float] | float) -> Seconds:
    """Amount per second for each measured time; `amount` is the amount of one run of an arm."""
    each = dict.fromkeys(seconds, amount) if isinstance(amount, (int, float)) else amount
    return {arm: [each[arm] / s for s in times] for arm, times in seconds.items()}


def result(
    name: str,
    measured: Mapping[str, Sequence[float]],
    value: Callable[[dict[str, float]], float],
    *,
    unit: str = "ratio",
    arm_unit: str,
    higher: bool = True,
    target: float | None = None,
    missing: Mapping[str, str] | None = None,
    note: str = "",
) -> Result:
    """A result from measurements of its arms; `value` gets their medians. It is None if it needs a missing arm."""
    medians = {arm: statistics.median(numbers) for arm, numbers in measured.items()}
    try:
        number: float | None = _short(value(medians))
    except KeyError as arm:
        if not missing or arm.args[0] not in missing:
            raise
        number = None
    return Result(
        name=name,
        value=number,
        unit=unit,
        higher_is_better=higher,
        arms={arm: _short(median) for arm, median in medians.items()},
        arm_unit=arm_unit,
        n=min((len(numbers) for numbers in measured.values()), default=0),
        spread={arm: (_short(min(numbers)), _short(max(numbers))) for arm, numbers in measured.items()},
        target=target,
        missing=dict(missing or {}),
        note=note,
    )


def over(upper: str, lower: str) -> Callable[[dict[str, float]], float]:
    """The value of a result: the median of one arm over that of another."""
    return lambda medians: medians[upper] / medians[lower]


def milliseconds(seconds: Seconds) -> Seconds:
    """The same times in milliseconds."""
    return {arm: [1e3 * s for s in times] for arm, times in seconds.items()}


def _short(number: float) -> float:
    """Four significant digits: no benchmark here is more exact."""
    return float(f"{number:.4g}")
