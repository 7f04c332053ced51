"""A stream beside a fine-tuning job of the same service: tokens per second, and seconds of the job's steps.

The job runs in the worker process of the service, with the defaults. Each round measures the stream alone, then the job
alone, then the job beside one stream after the other, and cancels the job.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple

import httpx

from benchmarks.adapters.refining import DESCRIPTION, EXAMPLES
from benchmarks.measuring.measure import Result, over, result
from benchmarks.measuring.workbench import Workbench
from benchmarks.service.servers import Server, our_service

_TARGET = 0.6
_TOKENS = 256
_STEPS_ALONE, _STEPS_BESIDE = 4, 2
_EPOCHS, _COPIES = 50, 4
"""More steps than a round needs."""
_LOOK_SECONDS = 0.1
_START_SECONDS = 300.0


def run(bench: Workbench) -> list[Result]:
    tokens = bench.tokens(_TOKENS)
    rate: dict[str, list[float]] = {"alone": [], "beside": []}
    step: dict[str, list[float]] = {"alone": [], "beside": []}
    with our_service(bench) as server, ThreadPoolExecutor(1) as other:
        _tokens_per_second(server, tokens)  # warm-up
        for _ in range(bench.times(3)):
            rate["alone"].append(_tokens_per_second(server, tokens))
            with _running_job(server) as job:
                begin = job.last
                while job.step < begin.step + _STEPS_ALONE:
                    job.look()
                step["alone"].append(job.seconds_per_step(begin))
                begin = job.last
                while job.step < begin.step + _STEPS_BESIDE:
                    stream = other.submit(_tokens_per_second, server, tokens)
                    while not stream.done():
                        job.look()
                    rate["beside"].append(stream.result())
                step["beside"].append(job.seconds_per_step(begin))
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
            note="Examples of about 40 tokens, 8 rows in a step, half of them with the description. Streams follow "
            "each other at once.",
        ),
    ]


def _tokens_per_second(server: Server, tokens: int) -> float:
    (answer,) = server.answers(["task-0"], tokens=tokens)
    return (answer.tokens - 1) / answer.streaming


class _End(NamedTuple):
    """The end of a step, and when it was seen."""

    step: int
    seen: float


class _Job:
    """A running fine-tuning job.

    Attributes:
        last: the end of the last step.
    """

    def __init__(self, client: httpx.Client, identity: str) -> None:
        self._client, self._address = client, f"/v1/fine_tuning/jobs/{identity}"
        self.last = _End(0, time.perf_counter())

    @property
    def step(self) -> int:
        """The number of completed steps."""
        return self.last.step

    def look(self) -> None:
        """Look at the job now, then wait a little.

        Raises:
            RuntimeError: the job has ended.
        """
        job = _answered(self._client.get(self._address))
        if job["status"] not in ("queued", "running"):
            raise RuntimeError(f"the job has ended too early: {job['status']} {job['error']}")
        if job["step"] > self.step:
            self.last = _End(job["step"], time.perf_counter())
        time.sleep(_LOOK_SECONDS)

    def seconds_per_step(self, begin: _End) -> float:
        """Mean over the steps since `begin`."""
        return (self.last.seen - begin.seen) / (self.last.step - begin.step)

    def cancel(self) -> None:
        """End the job."""
        _answered(self._client.post(f"{self._address}/cancel"))


@contextmanager
def _running_job(server: Server) -> Iterator[_Job]:
    """A job whose first step is done; it is cancelled at the end."""
    lines = "".join(json.dumps({"input": given, "output": wanted}) + "\n" for given, wanted in EXAMPLES * _COPIES)
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
        yield job
        job.cancel()


def _answered(response: httpx.Response) -> Any:
    if response.status_code != 200:
        raise RuntimeError(f"{response.request.url}: {response.status_code} {response.text[:200]}")
    return response.json()
