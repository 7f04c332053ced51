from __future__ import annotations

import asyncio
import threading

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr

from llgbm.errors import CheckpointError
from service.app import create_app
from service.models.loading import LoadModels, Models, Progress
from service.observability.metrics import Metrics
from service.settings import Settings
from tests.service.support.harness import Serving, state_of, until
from tests.service.support.redis_server import RedisServer


async def test_live_at_once_and_ready_when_loaded(settings: Settings, load_dummy: LoadModels) -> None:
    go = threading.Event()

    def slow_load(settings: Settings, metrics: Metrics, progress: Progress) -> Models:
        progress("half way")
        go.wait(20)
        return load_dummy(settings, metrics, progress)

    app = create_app(settings, load=slow_load)
    transport = httpx.ASGITransport(app=app)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        await until(lambda: state_of(app).progress == "half way")
        assert (await client.get("/livez")).json() == {"status": "alive"}
        loading = await client.get("/readyz")
        assert (loading.status_code, loading.json()["status"], loading.json()["reason"]) == (503, "loading", "half way")
        refused = await client.post("/chat", json={"prompt": "a", "query": "b"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "loading")
        assert refused.headers["Retry-After"]
        assert (await client.get("/openapi.json")).status_code == 200
        go.set()
        await until(lambda: state_of(app).services is not None)
        ready = await client.get("/readyz")
        assert (ready.status_code, ready.json()["status"]) == (200, "ready")
        assert (ready.json()["base"], ready.json()["base_storage"]) == ("llgbm/tiny-random-qwen2", "float32")


@pytest.mark.parametrize(
    ("error", "told"),
    [(CheckpointError("no generator here"), "no generator here"), (KeyError("secret"), "KeyError; the log says more")],
)
async def test_what_cannot_be_loaded_is_told_and_ends_the_process(
    settings: Settings, error: Exception, told: str
) -> None:
    def fail(settings: Settings, metrics: Metrics, progress: Progress) -> Models:
        raise error

    app = create_app(settings, load=fail)
    ended = asyncio.Event()
    state_of(app).on_failure = ended.set
    transport = httpx.ASGITransport(app=app)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        await asyncio.wait_for(ended.wait(), 20)
        answer = await client.get("/readyz")
        assert (answer.status_code, answer.json()["status"], answer.json()["reason"]) == (503, "failed", told)
        assert (await client.get("/adapters")).status_code == 503
        assert (await client.get("/livez")).status_code == 200


async def test_metrics_are_prometheus_text_without_prompts(dummy_app: tuple[FastAPI, httpx.AsyncClient]) -> None:
    _, client = dummy_app
    made = await client.post("/generate-adapter", json={"prompt": "a very private task", "name": "private-name"})
    await client.post("/chat", json={"adapter_id": "private-name", "query": "a private question"})
    await client.get("/adapters/private-name")
    await client.request("MADEUP", "/private/path")
    text = (await client.get("/metrics")).text
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert "private" not in text
    assert "MADEUP" not in text
    for name in (
        "llgbm_queue_depth",
        "llgbm_batch_rows",
        "llgbm_time_to_first_token_seconds",
        "llgbm_inter_token_seconds",
        "llgbm_completion_tokens",
        "llgbm_adapter_generation_seconds",
        "llgbm_embedding_cache",
        "llgbm_adapters_resident",
        "llgbm_lora_requests_info",
    ):
        assert name in families, name
    made_count = [s.value for s in families["llgbm_adapters"].samples if s.labels.get("outcome") == "made"]
    assert made_count[0] == 1
    assert made.status_code == 201


async def test_without_redis_it_serves_and_says_degraded(serving: Serving, redis_server: RedisServer) -> None:
    async with serving(redis_url=SecretStr(redis_server.url), redis_retry_after=0.0, redis_timeout=5.0) as (_, client):
        assert (await client.get("/readyz")).json()["status"] == "ready"
        redis_server.stop()
        down = await client.get("/readyz")
        assert (down.status_code, down.json()["status"]) == (200, "degraded")
        assert down.json()["embedding_cache"] == "degraded"
        assert (await client.post("/generate-adapter", json={"prompt": "a task"})).status_code == 201
        redis_server.start()
        assert (await client.get("/readyz")).json()["status"] == "ready"
