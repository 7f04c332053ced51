import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from limits import RateLimitItem

from service.errors import ApiError
from service.http.security import ApiKeys, RateLimiter
from service.models.loading import LoadModels
from service.settings import LOOPBACK, Settings
from tests.service.support.harness import Serving, free_port, make_settings, running, state_of
from tests.service.support.redis_server import RedisServer

KEYS = ("first-key", "second-key")
HASHES = tuple(hashlib.sha256(key.encode()).hexdigest() for key in KEYS)


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.mark.parametrize("key", KEYS)
def test_every_known_key_is_let_in_under_a_name_that_is_not_the_key(key: str) -> None:
    name = ApiKeys(HASHES).identify(f"Bearer {key}")
    assert name == hashlib.sha256(key.encode()).hexdigest()[:8]


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", "Basic first-key", "Bearer nope", f"Bearer {HASHES[0]}"]
)
def test_anything_else_is_401(header: str | None) -> None:
    with pytest.raises(ApiError) as caught:
        ApiKeys(HASHES).identify(header)
    assert caught.value.status_code == 401


async def test_every_route_but_the_public_ones_asks_for_a_key(serving: Serving) -> None:
    async with serving(api_key_hashes=HASHES) as (app, client):
        public = {"/livez", "/readyz", "/"}
        asked = 0
        for path, methods in app.openapi()["paths"].items():
            for method in methods:
                answer = await client.request(method, path.replace("{adapter_id}", "x").replace("{model}", "x"))
                if path in public:
                    assert answer.status_code == 200, path
                else:
                    asked += 1
                    assert answer.status_code == 401, (method, path)
                    assert answer.headers["WWW-Authenticate"] == "Bearer"
                    assert answer.json()["error"]["code"] == "invalid_api_key"
        assert asked >= 12
        for path in ("/nothing/here", "/metrics", "/metrics/", "/v1/models/x"):
            assert (await client.get(path)).status_code == 401, path
        assert (await client.get("/adapters", headers=bearer(KEYS[1]))).status_code == 200


async def test_a_body_that_is_too_large_is_413_whether_or_not_it_says_so(serving: Serving) -> None:
    async with serving(max_body_bytes=2048) as (_, client):
        large = b'{"prompt": "' + b"x" * 4000 + b'"}'

        async def in_pieces() -> AsyncIterator[bytes]:
            for start in range(0, len(large), 100):
                yield large[start : start + 100]

        head = {"Content-Type": "application/json"}
        declared = await client.post("/generate-adapter", content=large, headers=head)
        chunked = await client.post("/generate-adapter", content=in_pieces(), headers=head)
        for answer in (declared, chunked):
            assert answer.status_code == 413
            assert answer.json()["error"]["code"] == "too_large"


async def test_each_key_has_its_own_rate_and_429_says_when_to_come_back(serving: Serving) -> None:
    async with serving(api_key_hashes=HASHES, rate_limit="2/minute") as (app, client):
        statuses = [(await client.get("/adapters", headers=bearer(KEYS[0]))).status_code for _ in range(3)]
        refused = await client.get("/adapters", headers=bearer(KEYS[0]))
        other = await client.get("/adapters", headers=bearer(KEYS[1]))
        health = await client.get("/readyz")
        rejected = state_of(app).metrics.registry.get_sample_value("llgbm_rejected_total", {"reason": "rate"})
    assert statuses == [200, 200, 429]
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert 1 <= int(refused.headers["Retry-After"]) <= 60
    assert (other.status_code, health.status_code) == (200, 200)
    assert rejected == 2


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:8000", 200),
        ("127.0.0.1:1", 200),
        ("[::1]:8000", 200),
        ("evil.example", 403),
        ("[", 403),
    ],
)
async def test_on_loopback_without_keys_only_its_own_names_are_answered(
    settings: Settings, load_dummy: LoadModels, host: str, status: int
) -> None:
    async with running(settings.with_default_hosts(), load_dummy) as (_, client):
        answer = await client.get("/adapters", headers={"Host": host})
    assert answer.status_code == status
    if status == 403:
        assert answer.json()["error"]["code"] == "host_not_allowed"
        assert "LLGBM_ALLOWED_HOSTS" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("values", "hosts"),
    [
        ({}, LOOPBACK),
        ({"host": "0.0.0.0"}, ()),
        ({"api_key_hashes": HASHES}, ()),
        ({"allowed_hosts": ("my.example",)}, ("my.example",)),
    ],
)
def test_hosts_are_checked_where_nothing_else_is(
    tmp_path: Path, values: dict[str, Any], hosts: tuple[str, ...]
) -> None:
    assert make_settings(tmp_path, **values).with_default_hosts().allowed_hosts == hosts


async def test_hosts_that_are_named_are_answered_and_a_star_means_all(serving: Serving) -> None:
    for hosts, status in ((("my.example",), 403), (("my.example", "*"), 200), ((), 200)):
        async with serving(allowed_hosts=hosts) as (_, client):
            answers = [
                await client.get("/adapters", headers={"Host": host}) for host in ("my.example", "other.example")
            ]
        assert [answer.status_code for answer in answers] == [200, status]


async def test_cors_is_off_unless_an_origin_is_named(
    dummy_app: tuple[FastAPI, httpx.AsyncClient], tmp_path_factory: pytest.TempPathFactory, load_dummy: LoadModels
) -> None:
    origin = {"Origin": "https://page.example"}
    assert "access-control-allow-origin" not in (await dummy_app[1].get("/livez", headers=origin)).headers
    allowed = make_settings(
        tmp_path_factory.mktemp("cors"), cors_origins=("https://page.example",), api_key_hashes=HASHES
    )
    async with running(allowed, load_dummy) as (_, client):
        preflight = await client.options("/chat", headers={**origin, "Access-Control-Request-Method": "POST"})
        refused = await client.get("/adapters", headers=origin)
    assert preflight.status_code == 200
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == "https://page.example"


async def test_a_fault_has_the_headers_of_cors_too(serving: Serving) -> None:
    origin = "https://page.example"
    async with serving(cors_origins=(origin,)) as (app, client):

        @app.get("/broken")
        async def broken() -> None:
            raise ValueError

        answer = await client.get("/broken", headers={"Origin": origin})
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (500, origin)
    assert "X-Request-ID" in answer.headers["access-control-expose-headers"]


@pytest.mark.parametrize("kind", ["url", "socket_url"])
async def test_processes_count_together_in_redis_however_it_is_reached(redis_server: RedisServer, kind: str) -> None:
    one, two = (RateLimiter("2/minute", getattr(redis_server, kind), timeout=1, retry_after=60) for _ in range(2))
    await one.check("someone")
    await two.check("someone")
    for limiter in (one, two):
        with pytest.raises(ApiError):
            await limiter.check("someone")
        await limiter.close()


async def test_a_redis_that_is_not_there_is_left_alone_and_the_count_goes_on_here(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limiter = RateLimiter("2/minute", f"redis://127.0.0.1:{free_port()}/0", timeout=0.2, retry_after=60)
    shared, asked = limiter._shared, []
    assert shared is not None
    hit = shared.hit

    async def counted(item: RateLimitItem, client: str) -> bool:
        asked.append(client)
        return await hit(item, client)

    monkeypatch.setattr(shared, "hit", counted)
    await limiter.check("someone")
    await limiter.check("someone")
    with pytest.raises(ApiError) as caught:
        await limiter.check("someone")
    assert caught.value.status_code == 429
    assert asked == ["someone"]
    await limiter.close()
