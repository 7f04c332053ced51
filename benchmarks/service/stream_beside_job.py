"""A stream beside a fine-tuning job of the same service: tokens per second, and seconds of the job's steps.

The job runs in the worker process of the service, with the defaults, on 16 examples of about 40 tokens. Each round
measures the stream alone, then the job alone, then both at the same time, and cancels the job.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx

from benchmarks.adapters.refining import DESCRIPTION, EXAMPLES
from benchmarks.measuring.measure import Result, over, result
from benchmarks.measuring.workbench import Workbench
from benchmarks.service.servers import Server, our_service

_TARGET = 0.6
_TOKENS = 256
_STEPS = 6
_EPOCHS = 50
"""More steps than fit beside the stream."""
_LOOK_SECONDS = 0.1
_START_SECONDS = 300.0


def run(bench: Workbench) -> list[Result]:
    tokens = bench.tokens(_TOKENS)
    rate: dict[str, list[float]] = {"alone": [], "beside": []}
    step: dict[str, list[float]] = {"alone": [], "beside": []}
    with our_service(bench) as server, ThreadPoolExecutor(1) as other:
        _tokens_per_second(server, tokens)  # warm-up
        for _ in range(bench.times(5)):
            rate["alone"].append(_tokens_per_second(server, tokens))
            with _running_job(server) as job:
                enough = job.step + bench.times(_STEPS)
                step["alone"].append(job.seconds_per_step(lambda job=job, enough=enough: job.step >= enough))
                stream = other.submit(_tokens_per_second, server, tokens)
                step["beside"].append(job.seconds_per_step(stream.done))
                rate["beside"].append(stream.result())
    return [
        result(
            "tokens per second of a stream beside a fine-tuning job, over the same stream alone",
            rate,
            over("beside", "alone"),
            arm_unit="tokens/s",
            target=_TARGET,
            note="One client, one adapter, int8 base; from the first piece of text to the last.",
        ),
        result(
            "seconds of a step of a fine-tuning job beside a stream, over a step of the same job alone",
            step,
            over("beside", "alone"),
            arm_unit="s",
            higher=False,
            note=f"{len(EXAMPLES)} examples of about 40 tokens, 8 rows in a step, half of them with the description.",
        ),
    ]


def _tokens_per_second(server: Server, tokens: int) -> float:
    (answer,) = server.answers(["task-0"], tokens=tokens)
    return (answer.tokens - 1) / answer.streaming


class _Job:
    """A running fine-tuning job."""

    def __init__(self, client: httpx.Client, identity: str) -> None:
        self._client, self._address = client, f"/v1/fine_tuning/jobs/{identity}"
        self.step = 0

    def look(self) -> None:
        """Update the number of completed steps.

        Raises:
            RuntimeError: the job has ended.
        """
        job = _answered(self._client.get(self._address))
        if job["status"] not in ("queued", "running"):
            raise RuntimeError(f"the job has ended too early: {job['status']} {job['error']}")
        self.step = job["step"]

    def seconds_per_step(self, done: Callable[[], bool]) -> float:
        """Mean from the first end of a step to the last one until `done`; at least one step is waited for."""
        ends: list[tuple[int, float]] = []
        while len(ends) < 2 or not done():
            before = self.step
            self.look()
            if self.step > before:
                ends.append((self.step, time.perf_counter()))
            time.sleep(_LOOK_SECONDS)
        (first, start), (last, end) = ends[0], ends[-1]
        return (end - start) / (last - first)

    def cancel(self) -> None:
        """End the job."""
        _answered(self._client.post(f"{self._address}/cancel"))


@contextmanager
def _running_job(server: Server) -> Iterator[_Job]:
    """A job whose first step is done; it is cancelled at the end."""
    lines = "".join(json.dumps({"input": given, "output": wanted}) + "\n" for given, wanted in EXAMPLES)
    order = {"model": f"prompt:{DESCRIPTION}", "hyperparameters": {"n_epochs": _EPOCHS}}
    with httpx.Client(base_url=server.url, timeout=60) as client:
        file = _answered(
            client.post("/v1/files", files={"file": ("tickets.jsonl", lines)}, data={"purpose": "fine-tune"})
        )
        made = _answered(client.post("/v1/fine_tuning/jobs", json={**order, "training_file": file["id"]}))
        job = _Job(client, made["id"])
        deadline = time.monotonic() + _START_SECONDS
        while not job.step:
            job.look()
            if time.monotonic() > deadline:
                raise RuntimeError(f"the job made no step in {_START_SECONDS:.0f} s")
            time.sleep(_LOOK_SECONDS)
        yield job
        job.cancel()


def _answered(response: httpx.Response) -> Any:
    if response.status_code != 200:
        raise RuntimeError(f"{response.request.url}: {response.status_code} {response.text[:200]}")
    return response.json()
