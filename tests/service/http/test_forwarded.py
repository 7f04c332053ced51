"""Behind a proxy: links, redirects, and whom its headers are believed from. Each on the whole application."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import httpx
import pytest

from service.models.loading import LoadModels
from service.settings import Settings
from tests.service.support.harness import running, state_of

Behind = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]
PEER = "10.1.2.3"


@pytest.fixture
def behind(settings: Settings, load_dummy: LoadModels) -> Behind:
    """The application as a proxy at 10.1.2.3 reaches it."""

    @asynccontextmanager
    async def start(**values: Any) -> AsyncIterator[httpx.AsyncClient]:
        async with running(settings.model_copy(update=values), load_dummy) as (app, _):
            transport = httpx.ASGITransport(app=app, raise_app_exceptions=False, client=(PEER, 1))
            async with httpx.AsyncClient(transport=transport, base_url="http://inside:8000") as client:
                yield client

    return start


@pytest.mark.parametrize("kept", ["/llgbm", ""])
async def test_links_and_redirects_have_the_prefix_whether_or_not_the_proxy_takes_it_off(
    behind: Behind, kept: str
) -> None:
    async with behind(root_path="/llgbm") as client:
        made = await client.post(f"{kept}/generate-adapter", json={"prompt": "a task"})
        identity = made.json()["id"]
        assert made.headers["location"] == f"/llgbm/adapters/{identity}"
        for answer in (made.json(), (await client.get(f"{kept}/adapters")).json()["data"][0]):
            assert answer["links"]["archive"] == f"/llgbm/adapters/{identity}/archive"
        shown = await client.get(f"{kept}/adapters/{identity}")
        assert shown.json()["links"]["adapter"] == f"/llgbm/adapters/{identity}"
        assert (await client.get(f"{kept}/static/js/main.js")).status_code == 200
        assert (await client.get(f"{kept}/readyz")).json()["status"] == "ready"


async def test_the_bare_prefix_leads_to_the_page(behind: Behind) -> None:
    async with behind(root_path="/llgbm", trusted_proxies=(PEER,)) as client:
        headers = {"Host": "page.example", "X-Forwarded-Proto": "https"}
        answer = await client.get("/llgbm", headers=headers)
        assert (answer.status_code, answer.headers["location"]) == (307, "https://page.example/llgbm/")
        assert (await client.get("/llgbm/")).headers["content-type"].startswith("text/html")


async def test_keys_are_asked_for_under_the_prefix_too(behind: Behind) -> None:
    async with behind(root_path="/llgbm", api_key_hashes=("0" * 64,)) as client:
        for path, status in {"/llgbm/adapters": 401, "/adapters": 401, "/llgbm/livez": 200, "/llgbm": 307}.items():
            assert (await client.get(path)).status_code == status, path
        for path in ("/llgbm//livez", "/llgbm/../adapters", "/llgbmx/livez"):
            assert (await client.get(path)).status_code == 401, path


@pytest.mark.parametrize(
    ("sent", "prefix"),
    [("/llgbm", "/llgbm"), ("llgbm/", "/llgbm"), ("/a, /b", "/a/b"), ("//evil.example", ""), ("https://evil", "")],
)
async def test_the_prefix_of_a_trusted_proxy_is_believed(behind: Behind, sent: str, prefix: str) -> None:
    async with behind(trusted_proxies=("10.0.0.0/8",)) as client:
        made = await client.post("/generate-adapter", json={"prompt": "a task"}, headers={"X-Forwarded-Prefix": sent})
        assert made.json()["links"]["adapter"] == f"{prefix}/adapters/{made.json()['id']}"


async def test_headers_of_others_are_not_believed(behind: Behind) -> None:
    forged = {"X-Forwarded-Prefix": "/evil", "X-Forwarded-Proto": "https", "X-Forwarded-For": "1.2.3.4"}
    async with behind(trusted_proxies=("10.9.0.0/16",), rate_limit="1/minute") as client:
        made = await client.post("/generate-adapter", json={"prompt": "a task"}, headers=forged)
        assert made.json()["links"]["adapter"].startswith("/adapters/")
        again = await client.get("/adapters", headers={"X-Forwarded-For": "5.6.7.8"})
        assert again.status_code == 429  # the same client, whatever it says


async def test_the_rate_counts_by_the_address_that_a_trusted_proxy_tells(behind: Behind) -> None:
    async with behind(trusted_proxies=(PEER,), rate_limit="1/minute") as client:
        for address, status in [("1.2.3.4", 200), ("5.6.7.8", 200), ("1.2.3.4", 429)]:
            answer = await client.get("/adapters", headers={"X-Forwarded-For": address})
            assert answer.status_code == status


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/metrics"])
@pytest.mark.parametrize("host", ["10.0.0.7:8000", "", "[::1]:8000", "anything"])
async def test_probes_are_answered_under_any_host_name(
    settings: Settings, load_dummy: LoadModels, path: str, host: str
) -> None:
    guarded = settings.model_copy(update={"allowed_hosts": ("page.example",)})
    async with running(guarded, load_dummy) as (app, client):
        assert (await client.get(path, headers={"Host": host})).status_code == 200
        assert (await client.get("/adapters", headers={"Host": host})).status_code == 403
        assert state_of(app).active == 0


@pytest.mark.parametrize("origin", ["https://page.example", "https://other.example"])
async def test_a_page_that_is_allowed_may_call_a_private_network(
    settings: Settings, load_dummy: LoadModels, origin: str
) -> None:
    asked = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Private-Network": "true",
    }
    allowed = settings.model_copy(update={"cors_origins": ("https://page.example",)})
    async with running(allowed, load_dummy) as (_, client):
        answer = await client.options("/v1/chat/completions", headers=asked)
    expected = (200, "true") if origin == "https://page.example" else (400, None)
    assert (answer.status_code, answer.headers.get("access-control-allow-private-network"))[0] == expected[0]
    if expected[1]:
        assert answer.headers["access-control-allow-private-network"] == "true"
