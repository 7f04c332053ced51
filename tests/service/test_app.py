"""The application as a whole: it drains, and survives failures of Redis and the disk."""

from __future__ import annotations

import asyncio
import errno
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry
from pydantic import SecretStr

from service import app as app_module
from service.app import create_app, drain
from service.models.loading import LoadModels, Models, Progress
from service.observability.metrics import Metrics
from service.settings import Settings
from tests.service.support.dummy_decoder import DummyDecoder
from tests.service.support.forked import tiny_loader
from tests.service.support.harness import (
    CHEESE,
    Serving,
    live,
    make_settings,
    services_of,
    state_of,
    until,
    wait_until,
)
from tests.service.support.redis_server import RedisServer

QUESTION = {"prompt": "a task", "query": "x"}


async def test_draining_refuses_new_work_and_finishes_what_runs(serving: Serving, dummy: DummyDecoder) -> None:
    async with serving() as (app, client):
        dummy.hold.clear()
        answer = asyncio.ensure_future(client.post("/chat", json=QUESTION))
        await until(lambda: len(dummy.rows) == 1)
        draining = asyncio.ensure_future(drain(state_of(app), seconds=30))
        await until(lambda: state_of(app).draining)
        ready = await client.get("/readyz")
        assert (ready.status_code, ready.json()["status"]) == (503, "draining")
        assert (await client.get("/livez")).status_code == 200
        refused = await client.post("/chat", json=QUESTION)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
        assert refused.headers["Retry-After"]
        assert not draining.done()
        dummy.hold.set()
        assert (await answer).json()["answer"] == "adapted answer"
        await draining


async def test_past_the_deadline_of_the_drain_answers_end_with_an_error(serving: Serving, dummy: DummyDecoder) -> None:
    dummy._script = lambda row: [65] * 100_000
    dummy.step_seconds = 0.005
    async with serving() as (app, client):
        body = {"model": "llgbm/tiny-random-qwen2", "messages": [{"role": "user", "content": "x"}], "max_tokens": 3000}
        whole = asyncio.ensure_future(client.post("/v1/chat/completions", json=body))
        stream = asyncio.ensure_future(client.post("/v1/chat/completions", json={**body, "stream": True}))
        await until(lambda: len(dummy.rows) == 2)
        await drain(state_of(app), seconds=0.05)
        assert ((await whole).status_code, (await whole).json()["error"]["code"]) == (503, "draining")
        *_, last, done = (await stream).text.strip().split("\n\n")
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "draining"
        assert done == "data: [DONE]"
        assert dummy.rows == []


def test_redis_killed_frozen_and_restarted_under_load_fails_no_request(
    tmp_path: Path, redis_server: RedisServer, tiny_base_path: Path, tiny_encoder_path: Path, tiny_checkpoint_path: Path
) -> None:
    """Eight clients make adapters and chat, with a rate limit in Redis, during six outages of Redis."""
    settings = make_settings(
        tmp_path,
        redis_url=SecretStr(redis_server.url),
        redis_retry_after=0.05,
        rate_limit="1000000/minute",
        embedding_memory=1,
        max_batch=8,
    )
    stop, statuses = threading.Event(), list[int]()

    def trouble(metrics: CollectorRegistry) -> None:
        for outage in range(60):
            kinds = [errors_of(metrics, kind) for kind in ("unreachable", "timeout")]
            if outage >= 6 and all(kinds) and len(statuses) > 50:
                break
            time.sleep(0.3)
            if outage % 3 == 2:
                redis_server.freeze()
                time.sleep(0.2)
                redis_server.thaw()
            else:
                redis_server.stop()
                time.sleep(0.1)
                redis_server.start()
        stop.set()

    def work(client: httpx.Client, worker: int) -> None:
        for number in count():
            if stop.is_set():
                return
            made = client.post("/generate-adapter", json={"prompt": f"task {worker} {number}"})
            body = {"model": f"prompt:task {number % 7}", "messages": CHEESE, "max_tokens": 3, "stream": True}
            chat = client.post("/v1/chat/completions", json=body)
            statuses.extend([made.status_code, 500 if '"error"' in chat.text else chat.status_code])

    try:
        load = tiny_loader(tiny_base_path, tiny_encoder_path, tiny_checkpoint_path)
        with live(settings, load) as server, httpx.Client(base_url=server.url, timeout=60) as client:
            metrics = state_of(server.app).metrics.registry
            with ThreadPoolExecutor(9) as pool:
                troubling = pool.submit(trouble, metrics)
                working = [pool.submit(work, client, worker) for worker in range(8)]
                troubling.result()
                for future in working:
                    future.result()
            assert set(statuses) <= {200, 201}
            assert len(statuses) > 50
            for kind in ("unreachable", "timeout"):
                assert errors_of(metrics, kind) > 0
            wait_until(lambda: client.get("/readyz").json()["status"] == "ready")
    finally:
        stop.set()


async def test_two_applications_on_one_store(serving: Serving) -> None:
    async with serving() as (_, one), serving() as (_, two):
        made = await one.post("/generate-adapter", json={"prompt": "a task", "name": "shared"})
        found = await two.post("/generate-adapter", json={"prompt": "a task"})
        assert (made.status_code, found.status_code) == (201, 200)
        assert (await two.post("/chat", json={"adapter_id": "shared", "query": "x"})).status_code == 200
        taken = await two.post("/generate-adapter", json={"prompt": "another", "name": "shared"})
        assert taken.status_code == 409
        assert (await one.delete("/adapters/shared")).status_code == 200
        assert (await two.post("/chat", json={"adapter_id": "shared", "query": "x"})).status_code == 404
        both = await asyncio.gather(*(app.post("/generate-adapter", json={"prompt": "new"}) for app in (one, two)))
        assert len({answer.json()["digest"] for answer in both}) == 1
        assert len((await one.get("/adapters")).json()["data"]) == 1


async def test_a_full_disk_is_507_and_what_exists_is_served(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving() as (app, client):
        assert (await client.post("/chat", json=QUESTION)).status_code == 200

        def full(*_: object, **__: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr("os.fsync", full)
            answer = await client.post("/generate-adapter", json={"prompt": "another"})
        assert answer.status_code == 507
        assert answer.json()["error"]["code"] == "insufficient_storage"
        assert (await client.post("/chat", json=QUESTION)).status_code == 200
        assert len(list(services_of(app).store.files.folder.iterdir())) == 1


async def test_a_disk_without_room_for_a_name_is_507_and_the_adapter_is_kept(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    async with serving() as (_, client):
        with monkeypatch.context() as patch:
            patch.setattr("os.symlink", full)
            answer = await client.post("/generate-adapter", json={"prompt": "a task", "name": "mine"})
        assert answer.status_code == 507
        again = await client.post("/generate-adapter", json={"prompt": "a task", "name": "mine"})
        assert (again.status_code, again.json()["names"]) == (200, ["mine"])


async def test_a_process_that_loads_can_be_stopped(settings: Settings, load_dummy: LoadModels) -> None:
    loading, released = threading.Event(), threading.Event()

    def load_for_ever(settings: Settings, metrics: Metrics, progress: Progress) -> Models:
        loading.set()
        released.wait(60)
        return load_dummy(settings, metrics, progress)

    app = create_app(settings, load=load_for_ever)
    try:
        started = time.monotonic()
        async with app.router.lifespan_context(app):
            await until(loading.is_set)
        assert time.monotonic() - started < 30  # not the minute that loading takes
    finally:
        released.set()


async def test_an_engine_that_cannot_start_is_said_by_readyz(
    settings: Settings, load_dummy: LoadModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any) -> None:
        raise ValueError("no such engine")

    monkeypatch.setattr(app_module, "ChatService", refuse)
    app = create_app(settings, load=load_dummy)
    async with app.router.lifespan_context(app):
        await until(lambda: state_of(app).failure is not None)
        assert "ValueError" in str(state_of(app).failure)


def errors_of(metrics: CollectorRegistry, kind: str) -> float:
    return metrics.get_sample_value("llgbm_embedding_cache_errors_total", {"kind": kind}) or 0.0
