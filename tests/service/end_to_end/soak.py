"""Keeps the service under load and looks for leaks: `python -m tests.service.end_to_end.soak --minutes 10`.

Runs `python -m service` with the tiny models in a separate process, and sends 64 streams over 32 adapters, eight of
which fit in memory. A third of the clients disconnect at random. Prints progress, one line of JSON, and PASS or FAIL
with the reasons; the exit status is 0 or 1. Linux only, because memory and open files are read from /proc.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from statistics import linear_regression, median
from typing import Any

import httpx

from llgbm.pretrained.tiny import build_tiny_base, build_tiny_encoder
from service.adapters.files import AdapterFiles
from tests.service.end_to_end.storm import storm
from tests.service.support.process import Process
from tests.service.support.tiny_checkpoint import build_tiny_checkpoint

STREAMS, ADAPTERS, RESIDENT = 64, 32, 8
ADAPTER_BYTES = 32768
WARM_UP = 0.25
"""Fraction of the time after which memory should not grow."""
_GAUGES = ("llgbm_queue_depth", "llgbm_batch_rows", "llgbm_adapters_in_use", "llgbm_adapters_resident")


@dataclass
class Report:
    """The measurements; `problems` is empty if the test passed."""

    numbers: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def require(self, what: str, holds: bool) -> None:
        if not holds:
            self.problems.append(what)


def soak(folder: Path, seconds: float, limit_mb: float) -> Report:
    """Run the load for `seconds` and evaluate the measurements."""
    base, encoder = build_tiny_base(folder / "base"), build_tiny_encoder(folder / "encoder")
    checkpoint = build_tiny_checkpoint(folder / "checkpoint", base, encoder)
    process = Process(folder, checkpoint, base, ADAPTER_MEMORY=str(RESIDENT * ADAPTER_BYTES), LOG_LEVEL="error")
    try:
        process.wait_ready()
        return asyncio.run(_soak(process, folder, seconds, limit_mb))
    finally:
        process.end()


async def _soak(process: Process, folder: Path, seconds: float, limit_mb: float) -> Report:
    before, files_before = _plain_answer(process), _open_files(process)
    start = time.monotonic()
    sampling = asyncio.create_task(_sample(process, start, seconds))
    outcomes = await storm(
        process.url, streams=STREAMS, adapters=ADAPTERS, go_on=lambda _: time.monotonic() - start < seconds
    )
    samples = await sampling
    gauges = await asyncio.to_thread(_settled, process)

    warm = [(at, mb) for at, mb in samples if at >= WARM_UP * seconds]
    quarter = max(1, len(warm) // 4)
    first, last = (median(mb for _, mb in part) for part in (warm[:quarter], warm[-quarter:]))
    failed = Counter({name: n for name, n in outcomes.items() if name not in ("finished", "left")})
    stored = AdapterFiles(folder / "store").records()
    report = Report(
        {
            "seconds": round(time.monotonic() - start),
            "streams_finished": outcomes["finished"],
            "streams_left": outcomes["left"],
            "failed": dict(failed),
            "rss_mb_start": round(samples[0][1], 1),
            "rss_mb_warm": round(first, 1),
            "rss_mb_end": round(last, 1),
            "rss_mb_per_minute": round(60 * linear_regression(*zip(*warm, strict=True)).slope, 2),
            "open_files_start": files_before,
            "open_files_end": _open_files(process),
            **{name.removeprefix("llgbm_"): gauges[name] for name in _GAUGES},
            "adapters_stored": len(stored),
        }
    )
    report.require("streams failed", not failed)
    report.require("few streams finished or left", min(outcomes["finished"], outcomes["left"]) >= STREAMS)
    report.require("rows are held", gauges["llgbm_queue_depth"] == gauges["llgbm_batch_rows"] == 0)
    report.require("references are held", gauges["llgbm_adapters_in_use"] == 0)
    report.require("more adapters in memory than have room", gauges["llgbm_adapters_resident"] <= RESIDENT)
    report.require("files are left open", report.numbers["open_files_end"] <= files_before + 4)
    report.require(f"memory grew by more than {limit_mb:g} MB", last - first <= limit_mb)
    report.require("adapters were lost or left over", len(stored) == ADAPTERS)
    report.require("the plain base answers otherwise than before", _plain_answer(process) == before)
    return report


async def _sample(process: Process, start: float, seconds: float) -> list[tuple[float, float]]:
    """(seconds since the start, resident MB), about once per second."""
    samples: list[tuple[float, float]] = []
    while (now := time.monotonic() - start) < seconds or not samples:
        samples.append((now, _resident_mb(process)))
        if len(samples) % 15 == 1:
            sys.stdout.write(f"{now:6.0f} s  {samples[-1][1]:7.1f} MB\n")
            sys.stdout.flush()
        await asyncio.sleep(1)
    return samples


def _plain_answer(process: Process) -> str:
    """A greedy answer of the plain base, which no earlier adapter may change."""
    model = httpx.get(f"{process.url}/v1/models").json()["data"][0]["id"]
    body = {"model": model, "messages": [{"role": "user", "content": "cheese"}], "max_tokens": 16, "temperature": 0}
    answer = httpx.post(f"{process.url}/v1/chat/completions", json=body, timeout=60)
    text: str = answer.json()["choices"][0]["message"]["content"]
    return text


def _settled(process: Process) -> dict[str, float]:
    """The gauges after all requests have ended, or after a timeout."""
    deadline = time.monotonic() + 20
    while True:
        lines = httpx.get(f"{process.url}/metrics").text.splitlines()
        pairs = (line.split(" ") for line in lines if line.partition(" ")[0] in _GAUGES)
        gauges = {name: float(value) for name, value in pairs}
        if not any(gauges[name] for name in _GAUGES[:3]) or time.monotonic() > deadline:
            return gauges
        time.sleep(0.1)


def _resident_mb(process: Process) -> float:
    pages = int(Path(f"/proc/{process.popen.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _open_files(process: Process) -> int:
    return len(list(Path(f"/proc/{process.popen.pid}/fd").iterdir()))


def main(arguments: list[str] | None = None) -> int:
    """Run the test and print its result; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.service.end_to_end.soak", description=soak.__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--limit-mb", type=float, default=24.0, help="allowed growth of memory after the warm-up")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        report = soak(Path(folder), 60 * given.minutes, given.limit_mb)
    sys.stdout.write(json.dumps(report.numbers) + "\n")
    sys.stdout.write("PASS\n" if not report.problems else f"FAIL: {'; '.join(report.problems)}\n")
    return int(bool(report.problems))


if __name__ == "__main__":
    sys.exit(main())
