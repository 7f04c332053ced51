from __future__ import annotations

import json

import httpx
import pytest
from fastapi import FastAPI
from starlette.types import Message

from service.adapters.errors import StoreUnavailableError
from service.adapters.files import AdapterFiles
from service.adapters.index import AdapterIndex
from service.errors import ApiError
from service.http.errors import answer_to

JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("method", "path", "content", "status", "code"),
    [
        ("GET", "/nothing", None, 404, "not_found"),
        ("GET", "/adapters/nobody", None, 404, "adapter_not_found"),
        ("PUT", "/chat", None, 405, "method_not_allowed"),
        ("POST", "/livez", None, 405, "method_not_allowed"),
        ("POST", "/chat", b"", 422, "invalid_value"),
        ("POST", "/chat", b"{", 422, "invalid_value"),
        ("POST", "/chat", b"\xff\xfe", 422, "invalid_value"),
        ("POST", "/chat", b"3", 422, "invalid_value"),
        ("POST", "/chat", b'{"prompt": "\\ud800", "query": "x"}', 422, "invalid_value"),
        ("POST", "/chat", b'{"prompt": NaN, "query": "x"}', 422, "invalid_value"),
        ("POST", "/chat", b"[" * 50_000, 422, "invalid_value"),
        ("POST", "/chat", b" " * 2_000_000, 413, "too_large"),
        ("GET", "/adapters?limit=x", None, 422, "invalid_value"),
    ],
)
async def test_every_error_has_the_envelope(
    client: httpx.AsyncClient, method: str, path: str, content: bytes | None, status: int, code: str
) -> None:
    answer = await client.request(method, path, content=content, headers=JSON)
    assert answer.status_code == status, answer.text[:300]
    body = answer.json()
    assert set(body) == {"error", "request_id"}
    assert set(body["error"]) == {"message", "type", "code", "param"}
    assert body["error"]["code"] == code
    assert body["error"]["message"]
    assert body["request_id"] == answer.headers["X-Request-ID"]


async def test_a_client_that_hangs_up_while_it_sends_is_no_wrong_request(
    dummy_app: tuple[FastAPI, httpx.AsyncClient],
) -> None:
    sent: list[Message] = []
    parts = iter([{"type": "http.request", "body": b"{", "more_body": True}])
    scope = {
        "type": "http", "method": "POST", "path": "/chat", "raw_path": b"/chat", "query_string": b"", "root_path": "",
        "headers": [(b"content-type", b"application/json")], "client": ("test", 1), "server": ("test", 80),
        "scheme": "http", "http_version": "1.1", "asgi": {"version": "3.0"},
    }  # fmt: skip

    async def receive() -> Message:
        return next(parts, {"type": "http.disconnect"})

    async def send(message: Message) -> None:
        sent.append(message)

    await dummy_app[0](scope, receive, send)
    assert sent[0]["status"] == 499


async def test_a_store_that_does_not_answer_is_not_this_services_fault(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise StoreUnavailableError("the store of adapters does not answer: ConnectionError")

    for method in ("exists", "record", "records", "resolve"):
        monkeypatch.setattr(AdapterFiles, method, fail)
    monkeypatch.setattr(AdapterIndex, "catch_up", fail)
    body = {"prompt": "Say yes.", "query": "no"}
    for answer in (await client.get("/adapters"), await client.post("/chat", json=body)):
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
        assert answer.json()["error"]["code"] == "store_unavailable"


async def test_405_lists_the_methods(client: httpx.AsyncClient) -> None:
    assert (await client.put("/chat")).headers["Allow"] == "POST"


async def test_all_that_is_wrong_is_said_without_repeating_it(client: httpx.AsyncClient) -> None:
    body = {"prompt": ["private"], "query": "x", "temperature": 9, "surprise": "private"}
    error = (await client.post("/chat", json=body)).json()["error"]
    for field in ("prompt", "temperature", "surprise"):
        assert field in error["message"]
    assert error["param"] == "prompt"
    assert "private" not in error["message"]


def test_the_event_is_the_envelope() -> None:
    error = ApiError(504, "too slow\nreally", param="x")
    answer = answer_to(error)
    event = answer.event()
    assert event.startswith("data: ")
    assert event.endswith("\n\n")
    assert event.count("\n") == 2
    assert json.loads(event.removeprefix("data: ")) == answer.body
    assert answer.body["error"]["code"] == "deadline_exceeded"


@pytest.mark.parametrize(("seconds", "header"), [(0.0, "1"), (-3.0, "1"), (1.2, "2"), (30.0, "30")])
def test_retry_after_is_whole_seconds_and_at_least_one(seconds: float, header: str) -> None:
    assert answer_to(ApiError(429, "later", retry_after=seconds)).headers["Retry-After"] == header


def test_a_status_without_a_name_has_an_envelope_too() -> None:
    assert answer_to(ApiError(418, "a teapot")).body["error"]["type"] == "server_error"
