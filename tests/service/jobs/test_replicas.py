"""Two services in separate processes on one store: a job runs once, and survives the end of its service."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import openai
import pytest

from tests.service.jobs.test_jobs import BASE, at_step, finished, many, upload
from tests.service.support.forked import ForkedService
from tests.service.support.jobs import epochs, workers

METHOD = epochs(30)


@pytest.fixture
def start(
    tmp_path: Path,
    tiny_base_path: Path,
    tiny_encoder_path: Path,
    tiny_checkpoint_path: Path,
) -> Iterator[Callable[[], ForkedService]]:
    started: list[ForkedService] = []

    def start() -> ForkedService:
        models = [tiny_base_path, tiny_encoder_path, tiny_checkpoint_path]
        values = {"base": str(tiny_base_path), "refine_threads": 1, "refine_storage": "float32"}
        started.append(ForkedService(tmp_path, models, values))
        return started[-1]

    yield start
    for service in started:
        service.kill()


def api(service: ForkedService) -> openai.OpenAI:
    service.wait_ready()
    return openai.OpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0, timeout=60)


def owner(services: list[ForkedService]) -> ForkedService:
    """The service that started the worker."""
    return next(service for service in services if workers(service.pid))


def steps_of(client: openai.OpenAI, job: str) -> list[int]:
    events = list(client.fine_tuning.jobs.list_events(job, limit=100))
    return [each.data["step"] for each in reversed(events) if each.data]  # type: ignore[index]


def test_a_job_runs_once_and_survives_the_replica_that_ran_it(start: Callable[[], ForkedService]) -> None:
    services = [start(), start()]
    first, second = map(api, services)
    with first, second:
        file = upload(first, many(7))
        jobs = [c.fine_tuning.jobs.create(model=BASE, training_file=file, method=METHOD).id for c in (first, second)]
        at_step(second, jobs[0], 20)
        # one job at a time, regardless of the service that got the request
        assert second.fine_tuning.jobs.retrieve(jobs[1]).status == "queued"
        ran = owner(services)
        other = services[1 - services.index(ran)]
        os.kill(ran.pid, signal.SIGKILL)
        with api(other) as survivor:
            done = [finished(survivor, job) for job in jobs]
            assert [job.status for job in done] == ["succeeded", "succeeded"]
            assert done[0].fine_tuned_model == done[1].fine_tuned_model  # the interruption changed nothing
            for job in jobs[1:]:
                steps = steps_of(survivor, job)
                assert all(after == before + 1 for before, after in pairwise(steps)), "a step was done twice"
            again = [after for before, after in pairwise(steps_of(survivor, jobs[0])) if after <= before]
            assert len(again) <= 1
