"""Behind a proxy: links, redirects, and whom its headers are believed from. Each on the whole application."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import httpx
import pytest
from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from service.http.forwarded import ForwardedMiddleware
from service.models.loading import LoadModels
from service.settings import Settings
from tests.service.support.harness import Serving, running, state_of

Behind = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]
PEER = "10.1.2.3"
NET = "10.0.0.0/8"


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
        answer = await client.get("/llgbm", headers={"Host": "inside:8000"})
        # without scheme and host, which the proxy may have changed
        assert (answer.status_code, answer.headers["location"]) == (307, "/llgbm/")
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
    async with behind(trusted_proxies=(NET,)) as client:
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


FORMS = [
    ({"X-Forwarded-For": "{}"}, "the older headers"),
    ({"Forwarded": "for={};proto=https"}, "RFC 7239"),
    ({"Forwarded": 'proto=https; For="{}:4711";by=_secret , for=10.7.7.7'}, "quoted, with a port, by two proxies"),
    ({"X-Forwarded-For": "6.6.6.6, {}:80, 10.7.7.7"}, "after a forged one"),
    ({"Forwarded": "for=6.6.6.6, for={}, for=10.7.7.7"}, "after a forged one"),
    ({"X-Forwarded-For": "{}", "Forwarded": "for=6.6.6.6"}, "with a header that the proxy passed on"),
]


@pytest.mark.parametrize("headers", [form for form, _ in FORMS], ids=[f"{next(iter(f))}, {i}" for f, i in FORMS])
async def test_the_client_is_the_last_one_that_is_no_trusted_proxy(behind: Behind, headers: dict[str, str]) -> None:
    async with behind(trusted_proxies=(NET,), rate_limit="1/minute") as client:
        for address, status in [("1.2.3.4", 200), ("5.6.7.8", 200), ("1.2.3.4", 429)]:
            sent = {name: value.format(address) for name, value in headers.items()}
            assert (await client.get("/adapters", headers=sent)).status_code == status


@pytest.mark.parametrize("value", ['for="1.2.3.4', "for=1.2.3.4 proto=https", "for=a=b", 'x, for="1.2.3.4"'])
async def test_a_malformed_header_of_the_standard_is_not_believed(behind: Behind, value: str) -> None:
    async with behind(trusted_proxies=(PEER,), rate_limit="1/minute") as client:
        assert (await client.get("/adapters", headers={"Forwarded": value})).status_code == 200
        assert (await client.get("/adapters")).status_code == 429  # it was counted as the proxy's own


FILE: Any = {
    "file": ("rows.jsonl", b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n')
}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"X-Forwarded-Host": "Page.example"}, 200),
        ({"Forwarded": "host=page.example;proto=https"}, 200),
        ({"Forwarded": 'for=1.2.3.4;host="page.example"'}, 200),
        ({"X-Forwarded-Host": "evil.example"}, 403),
        ({}, 403),
    ],
)
async def test_the_page_may_upload_through_a_proxy_that_changes_the_host(
    behind: Behind, headers: dict[str, str], status: int
) -> None:
    for trusted, expected in (((PEER,), status), (("10.9.0.0/16",), 403)):
        async with behind(trusted_proxies=trusted) as client:
            sent = {"Origin": "https://page.example", "Host": "inside:8000", **headers}
            answer = await client.post("/v1/files", data={"purpose": "fine-tune"}, files=FILE, headers=sent)
            assert answer.status_code == expected, answer.text


async def test_the_host_that_a_proxy_tells_opens_no_host_that_is_not_allowed(behind: Behind) -> None:
    """A page that reached this machine by a name of its own could send the headers of a proxy too."""
    async with behind(trusted_proxies=("*",), allowed_hosts=("inside",)) as client:
        for forged in ({"X-Forwarded-Host": "inside"}, {"Forwarded": "host=inside"}):
            assert (await client.get("/adapters", headers={"Host": "evil.example", **forged})).status_code == 403
        assert (await client.get("/adapters", headers={"X-Forwarded-Host": "page.example"})).status_code == 200


@pytest.mark.parametrize(
    ("trusted", "headers", "client", "scheme"),
    [
        # two proxies: TLS ends at the outer one
        ((NET,), {"X-Forwarded-For": "1.2.3.4, 10.7.7.7", "X-Forwarded-Proto": "https, http"}, "1.2.3.4", "https"),
        # the outer one is not trusted, so it is the client
        ((PEER,), {"X-Forwarded-For": "1.2.3.4, 10.7.7.7", "X-Forwarded-Proto": "https, http"}, "10.7.7.7", "http"),
        ((PEER,), {"X-Forwarded-For": "1.2.3.4", "X-Forwarded-Proto": "https, http"}, "1.2.3.4", "http"),
        ((PEER,), {"X-Forwarded-Proto": "https, http"}, PEER, "http"),
        (("*",), {"X-Forwarded-Proto": "https, http"}, PEER, "https"),
        # the inner proxy replaced the scheme and added to the addresses
        ((NET,), {"X-Forwarded-For": "1.2.3.4, 10.7.7.7", "X-Forwarded-Proto": "HTTPS"}, "1.2.3.4", "https"),
        ((NET,), {"Forwarded": "for=1.2.3.4;proto=https, for=10.7.7.7;proto=http"}, "1.2.3.4", "https"),
        ((NET,), {"Forwarded": 'for="[2001:db8::1]:80"'}, "2001:db8::1", "http"),
        ((NET,), {"X-Forwarded-For": "[2001:db8::1]"}, "2001:db8::1", "http"),
        ((NET,), {"X-Forwarded-For": "1.2.3.4, ::ffff:10.7.7.7"}, "1.2.3.4", "http"),
        ((NET,), {"Forwarded": "for=unknown"}, "unknown", "http"),
        ((NET,), {"X-Forwarded-For": "", "X-Forwarded-Proto": "javascript"}, PEER, "http"),
        ((NET,), {"X-Forwarded-For": "10.7.7.7, 10.7.7.8"}, "10.7.7.7", "http"),
    ],
)  # fmt: skip
async def test_address_and_scheme_are_of_the_same_connection(
    trusted: tuple[str, ...], headers: dict[str, str], client: str, scheme: str
) -> None:
    for peer in (PEER, f"::ffff:{PEER}"):  # as a socket for both versions of IP names it
        found = await seen_by_the_service(trusted, headers, peer)
        assert (found["client"][0].removeprefix("::ffff:"), found["scheme"]) == (client, scheme)


async def seen_by_the_service(
    trusted: tuple[str, ...], headers: dict[str, str], peer: str = PEER, path: str = "/"
) -> dict[str, Any]:
    """The scope of a request as the application gets it."""
    seen: dict[str, Any] = {}

    async def application(scope: Scope, _: Receive, __: Send) -> None:
        seen.update(scope)

    sent = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": "GET", "scheme": "http", "path": path, "headers": sent, "client": (peer, 1)}
    unused: Any = None
    await ForwardedMiddleware(application, "", trusted)(scope, unused, unused)
    return seen


@pytest.mark.parametrize(
    ("target", "host", "path"),
    [
        ("http://page.example/livez", "page.example", "/livez"),
        ("HTTPS://page.example:8443/v1/models/", "page.example:8443", "/v1/models"),
        ("http://page.example", "page.example", "/"),
        ("/http://page.example", "inside", "/http://page.example"),
        ("*", "inside", "*"),
    ],
)
async def test_the_host_of_an_absolute_target_counts(target: str, host: str, path: str) -> None:
    seen = await seen_by_the_service((), {"Host": "inside"}, path=target)
    assert (Headers(scope=seen).getlist("host"), seen["path"]) == ([host], path)


async def test_a_trailing_slash_is_taken_off_below_the_prefix(behind: Behind) -> None:
    async with behind(root_path="/llgbm", api_key_hashes=("0" * 64,)) as client:
        for path, status in {"/livez/": 200, "/llgbm/livez/": 200, "/llgbm/adapters/": 401}.items():
            assert (await client.get(path)).status_code == status, path


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/metrics"])
@pytest.mark.parametrize("host", ["10.0.0.7:8000", "", "[::1]:8000", "anything"])
async def test_probes_are_answered_under_any_host_name(serving: Serving, path: str, host: str) -> None:
    async with serving(allowed_hosts=("page.example",)) as (app, client):
        assert (await client.get(path, headers={"Host": host})).status_code == 200
        assert (await client.get("/adapters", headers={"Host": host})).status_code == 403
        assert state_of(app).active == 0


@pytest.mark.parametrize("origin", ["https://page.example", "https://other.example"])
async def test_a_page_that_is_allowed_may_call_a_private_network(serving: Serving, origin: str) -> None:
    asked = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Private-Network": "true",
    }
    async with serving(cors_origins=("https://page.example",)) as (_, client):
        answer = await client.options("/v1/chat/completions", headers=asked)
    is_allowed = origin == "https://page.example"
    assert answer.status_code == (200 if is_allowed else 400)
    assert answer.headers.get("access-control-allow-origin") == (origin if is_allowed else None)
    if is_allowed:
        assert answer.headers["access-control-allow-private-network"] == "true"
