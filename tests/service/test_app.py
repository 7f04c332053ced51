"""The application as a whole: drains, survives load, holds no leaks."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import random
import threading
import time
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr

from llgbm.base import Base
from llgbm.checkpoint import load_generator
from llgbm.decoding import Decoder
from llgbm.prompting import AdapterMaker
from llgbm.text_encoder import PretrainedTextEncoder
from service.app import drain
from service.metrics import Metrics
from service.models import LoadModels, Models, Progress, embedding_cache
from service.settings import Settings
from tests.service.dummy_decoder import DummyDecoder
from tests.service.harness import LiveServer, live, make_settings, running, services_of, state_of, until, wait_until
from tests.service.redis_server import RedisServer

QUESTION = {"prompt": "a task", "query": "x"}


async def test_draining_refuses_new_work_and_finishes_what_runs(
    settings: Settings, load_dummy: LoadModels, dummy: DummyDecoder
) -> None:
    async with running(settings, load_dummy) as (app, client):
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


async def test_past_the_deadline_of_the_drain_answers_end_with_an_error(
    settings: Settings, load_dummy: LoadModels, dummy: DummyDecoder
) -> None:
    dummy._script = lambda row: [65] * 100_000
    dummy.step_seconds = 0.005
    async with running(settings, load_dummy) as (app, client):
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


def assert_nothing_is_held(server: LiveServer) -> None:
    services = services_of(server.app)
    wait_until(lambda: services.engine.rows == 0)
    wait_until(lambda: set(services.store.resident.values()) <= {0})
    wait_until(lambda: state_of(server.app).active == 0)


async def storm(server: LiveServer, *, streams: int, adapters: int, rounds: int) -> tuple[int, int]:
    """Streams over many adapters, a third of which hang up at random; (finished, hung up)."""
    randomness = random.Random(5)
    finished = hung_up = 0

    async def one(client: httpx.AsyncClient, number: int) -> None:
        nonlocal finished, hung_up
        for turn in range(rounds):
            body = {
                "model": f"prompt:task number {(number * rounds + turn) % adapters}",
                "messages": [{"role": "user", "content": "x" * randomness.randrange(1, 40)}],
                "max_tokens": randomness.randrange(1, 24),
                "seed": number,
                "stream": True,
            }
            leaves_after = randomness.randrange(6) if randomness.random() < 1 / 3 else None
            async with client.stream("POST", f"{server.url}/v1/chat/completions", json=body) as answer:
                assert answer.status_code == 200
                lines = 0
                async for line in answer.aiter_lines():
                    assert '"error"' not in line, line
                    lines += 1
                    if lines == leaves_after:
                        hung_up += 1
                        break
                else:
                    finished += 1

    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=120, limits=limits) as client:
        await asyncio.gather(*(one(client, number) for number in range(streams)))
    return finished, hung_up


def test_many_streams_over_many_adapters_with_clients_that_leave(tmp_path: Path, load_tiny: LoadModels) -> None:
    """A short form of the soak below, with the real decoder and room for a few adapters only."""
    settings = make_settings(tmp_path, max_batch=16, max_queue=200, max_jobs=200, adapter_memory=4 * 32768)
    with live(settings, load_tiny) as server:
        finished, hung_up = asyncio.run(storm(server, streams=64, adapters=32, rounds=2))
        assert finished + hung_up == 128
        assert min(finished, hung_up) > 10
        assert_nothing_is_held(server)
        services = services_of(server.app)
        assert len(services.store.resident) <= 4
        assert len(services.store.files.records()) == 32
        assert_answers_alike(server)


def assert_answers_alike(server: LiveServer) -> None:
    """After all that, the base answers as before: no adapter has stuck to it."""
    body = {"adapter_id": httpx.get(f"{server.url}/adapters").json()["data"][0]["id"], "query": "x", "max_tokens": 6}
    answers = [
        httpx.post(f"{server.url}/chat", json={**body, "compare_base": True}, timeout=60).json() for _ in range(2)
    ]
    assert answers[0]["answer"] == answers[1]["answer"]
    assert answers[0]["base_answer"] == answers[1]["base_answer"] != answers[0]["answer"]


def resident_memory() -> int:
    """Bytes of memory that this process occupies."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_ten_minutes_of_streams_leak_no_memory(tmp_path: Path, load_tiny: LoadModels) -> None:
    settings = make_settings(tmp_path, max_batch=16, max_queue=200, max_jobs=200, adapter_memory=8 * 32768)
    with live(settings, load_tiny) as server:
        asyncio.run(storm(server, streams=64, adapters=32, rounds=3))
        assert_nothing_is_held(server)
        before = resident_memory()
        end = time.monotonic() + 600
        while time.monotonic() < end:
            asyncio.run(storm(server, streams=64, adapters=32, rounds=3))
        assert_nothing_is_held(server)
        grown = resident_memory() - before
        assert grown < 100 * 2**20, f"{grown / 2**20:.0f} MB"


@pytest.mark.redis
def test_redis_killed_and_restarted_under_load_fails_no_request(
    tmp_path: Path, tiny_base: Base, tiny_checkpoint_path: Path, tiny_encoder_path: Path
) -> None:
    def load(settings: Settings, metrics: Metrics, progress: Progress) -> Models:
        cache = embedding_cache(settings, metrics)
        encoder = PretrainedTextEncoder(tiny_encoder_path, cache=cache)
        maker = AdapterMaker(load_generator(tiny_checkpoint_path), encoder)
        return Models(tiny_base, maker, lambda: Decoder(tiny_base), 4096, cache)

    redis = RedisServer(tmp_path)
    redis.start()
    settings = make_settings(
        tmp_path, redis_url=SecretStr(redis.url), redis_retry_after=0.05, rate_limit="100000/minute", embedding_memory=1
    )
    stop = threading.Event()

    def trouble() -> None:
        while not stop.is_set():
            redis.stop()
            stop.wait(0.1)
            redis.start()
            stop.wait(0.2)

    try:
        with live(settings, load) as server, httpx.Client(base_url=server.url, timeout=60) as client:
            troubling = threading.Thread(target=trouble)
            troubling.start()
            statuses = {client.post("/generate-adapter", json={"prompt": f"task {i}"}).status_code for i in range(60)}
            stop.set()
            troubling.join()
            assert statuses == {201}
            errors = state_of(server.app).metrics.registry.get_sample_value(
                "llgbm_embedding_cache_errors_total", {"kind": "unreachable"}
            )
            assert (errors or 0) > 0
            wait_until(lambda: client.get("/readyz").json()["status"] == "ready")
    finally:
        stop.set()
        redis.stop()


async def test_two_applications_on_one_store(tmp_path: Path, load_dummy: LoadModels) -> None:
    settings = make_settings(tmp_path)
    async with running(settings, load_dummy) as (_, one), running(settings, load_dummy) as (_, two):
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


async def test_a_full_disk_is_507_and_what_exists_is_served(
    settings: Settings, load_dummy: LoadModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(settings, load_dummy) as (app, client):
        assert (await client.post("/chat", json=QUESTION)).status_code == 200

        def full(*_: object, **__: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr("service.adapter_files.save_peft", full)
            answer = await client.post("/generate-adapter", json={"prompt": "another"})
        assert answer.status_code == 507
        assert answer.json()["error"]["code"] == "insufficient_storage"
        assert (await client.post("/chat", json=QUESTION)).status_code == 200
        assert len(list(services_of(app).store.files.folder.iterdir())) == 1
