"""Requests that wait for jobs end with the service."""

from __future__ import annotations

import asyncio
import json

import httpx
from fastapi import FastAPI

from service.app import end_answers
from service.jobs.records import JobOrder
from tests.service.support.harness import services_of, state_of, until

ORDER = JobOrder(model="base", start=None, description=None, training_file="file-x")


async def test_who_follows_or_waits_for_a_job_is_answered_when_the_service_stops(
    dummy_app: tuple[FastAPI, httpx.AsyncClient],
) -> None:
    app, client = dummy_app
    jobs = services_of(app).jobs
    job = await asyncio.to_thread(jobs._table.add, ORDER, max_queued=1)
    waiting = asyncio.ensure_future(jobs.wait(job.id, 300))
    path = f"/v1/fine_tuning/jobs/{job.id}/events"
    following = asyncio.ensure_future(client.get(path, params={"stream": "true"}))
    await until(lambda: state_of(app).active == 1)
    end_answers(state_of(app))
    assert not (await waiting).ended
    first, *_, last, done = (await following).text.strip().split("\n\n")
    assert json.loads(first.removeprefix("data: "))["message"] == "The job waits for its turn"
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "draining"
    assert done == "data: [DONE]"
