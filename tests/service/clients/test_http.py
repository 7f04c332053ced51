"""What clients' HTTP does: upgrades, missing headers, HEAD, kept connections."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from uvicorn.server import ServerState

from service.http.server import server_config
from service.settings import Settings
from tests.service.clients.conftest import BASE, CHAT, USER, refusal
from tests.service.support.harness import LiveServer, make_settings, services_of, wait_until

BODY = {"model": BASE, "messages": USER, "max_tokens": 4, "temperature": 0}
RAW = json.dumps(BODY).encode()
JAVA = (
    "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
    "HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA\r\nUser-Agent: Java-http-client/21\r\n"
)


def head(more: str, *, method: str = "POST", path: str = CHAT) -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n{more}\r\n".encode()


@pytest.fixture
def connection(server: LiveServer) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        yield connection


def read_answer(connection: socket.socket) -> tuple[int, bytes]:
    """Status and body of one answer with a Content-Length."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += connection.recv(65536)
    header, _, body = received.partition(b"\r\n\r\n")
    length = next(
        int(line.split(b":")[1]) for line in header.split(b"\r\n") if line.lower().startswith(b"content-length")
    )
    while len(body) < length:
        body += connection.recv(65536)
    return int(header.split()[1]), body


@pytest.mark.parametrize("upgrade", ["h2c", "websocket", "TLS/1.3"])
@pytest.mark.parametrize("way", ["one segment", "two segments", "chunked"])
def test_an_offer_to_upgrade_is_ignored_and_the_body_is_read(connection: socket.socket, upgrade: str, way: str) -> None:
    offer = JAVA.replace("h2c", upgrade)
    for _ in range(2):  # the connection is good for another request
        if way == "chunked":
            start = head(offer + "Transfer-Encoding: chunked\r\n")
            parts = [
                start,
                b"%x\r\n%s\r\n" % (len(RAW[:9]), RAW[:9]),
                b"%x\r\n%s\r\n0\r\n\r\n" % (len(RAW[9:]), RAW[9:]),
            ]
        else:
            start = head(offer + f"Content-Length: {len(RAW)}\r\n")
            parts = [start + RAW] if way == "one segment" else [start, RAW]
        for part in parts:
            connection.sendall(part)
            time.sleep(0.02)
        status, body = read_answer(connection)
        assert status == 200
        assert json.loads(body)["usage"]["completion_tokens"] > 0


def test_a_client_that_offered_to_upgrade_and_hangs_up_frees_its_row(
    server: LiveServer, connection: socket.socket
) -> None:
    body = json.dumps({**BODY, "max_tokens": 4000, "logit_bias": {"257": -100, "258": -100, "256": -100}}).encode()
    connection.sendall(head(JAVA + f"Content-Length: {len(body)}\r\n") + body)
    engine = services_of(server.app).engine
    wait_until(lambda: engine.rows == 1, seconds=10)
    connection.close()
    wait_until(lambda: engine.rows == 0, seconds=5)


@pytest.mark.parametrize("kind", [None, "application/x-www-form-urlencoded", "text/plain;charset=UTF-8"])
def test_json_is_taken_as_json_whatever_its_type(client: httpx.Client, kind: str | None) -> None:
    headers = {} if kind is None else {"Content-Type": kind}
    request = client.build_request("POST", CHAT, content=RAW, headers=headers)
    assert request.headers.get("content-type") == kind
    assert client.send(request).status_code == 200
    chunked = client.build_request("POST", CHAT, content=iter([RAW[:5], RAW[5:]]), headers=headers)
    assert client.send(chunked).status_code == 200


@pytest.mark.parametrize(
    ("kind", "content"),
    [(None, b"model=x&messages=y"), ("multipart/form-data; boundary=x", b"--x--"), ("text/xml", b"<a/>")],
)
@pytest.mark.parametrize("path", [CHAT, "/chat", "/generate-adapter"])
def test_what_is_not_json_is_told_to_name_it(client: httpx.Client, path: str, kind: str | None, content: bytes) -> None:
    headers = {} if kind is None else {"Content-Type": kind}
    _, words = refusal(client.post(path, content=content, headers=headers), 415)
    assert "Content-Type" in words
    assert (kind or "missing") in words


def test_a_page_of_another_origin_cannot_leave_the_type_out(client: httpx.Client) -> None:
    """Browsers send such requests without asking first, so they must not do anything."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        headers = {"Origin": "http://evil.example", "Content-Type": kind}
        refusal(client.post("/generate-adapter", content=b'{"prompt": "x"}', headers=headers), 415)
    assert ["x"] not in [adapter["prompts"] for adapter in client.get("/adapters").json()["data"]]


def test_a_compressed_body_is_refused_by_its_header(client: httpx.Client) -> None:
    answer = client.post(CHAT, content=b"\x1f\x8b", headers={"Content-Encoding": "gzip"})
    assert "Content-Encoding" in refusal(answer, 415)[1]
    assert answer.headers["Accept-Encoding"] == "identity"


def test_a_body_that_says_json_and_is_none_is_the_callers_mistake(client: httpx.Client) -> None:
    answer = client.post(CHAT, content=b"{", headers={"Content-Type": "application/json"})
    assert refusal(answer)[1] == "the body is not JSON"
    refusal(client.post("/chat", content=b"{", headers={"Content-Type": "application/json"}), 422)


def test_head_is_answered_wherever_get_is(client: httpx.Client, server: LiveServer, french: str) -> None:
    document = client.get("/openapi.json").json()
    gets = [path for path, methods in document["paths"].items() if "get" in methods]
    assert len(gets) > 8
    for path in [*gets, "/openapi.json", "/", "/v1/models/"]:
        path = path.replace("{adapter_id}", french).replace("{model}", BASE)
        get, headed = client.get(path), client.head(path)
        status = 404 if "{" in path else 200  # there is no such file or job
        assert (get.status_code, headed.status_code, headed.content) == (status, status, b""), path
        for name in ("content-type", "etag"):
            assert headed.headers.get(name) == get.headers.get(name), path
        if path != "/metrics":
            assert headed.headers["content-length"] == str(len(get.content)), path
    assert client.head("/adapters/nobody").status_code == 404
    assert client.put("/v1/models").headers["Allow"] == "GET, HEAD"


@pytest.mark.parametrize("path", ["/chat/completions", "/v1/v1/chat/completions", "/models"])
def test_a_wrong_base_address_is_told_where_the_protocol_is(client: httpx.Client, path: str) -> None:
    answer = client.post(path, json=BODY)
    assert "OpenAI's protocol is below /v1" in refusal(answer, 404)[1]


def test_a_client_that_waits_before_it_sends_the_body_is_told_to_go_on(connection: socket.socket) -> None:
    """curl does so for a large body, and .NET for any."""
    connection.sendall(head(f"Content-Length: {len(RAW)}\r\nExpect: 100-continue\r\n"))
    assert connection.recv(65536).startswith(b"HTTP/1.1 100 ")
    connection.sendall(RAW)
    assert read_answer(connection)[0] == 200


def test_a_probe_of_http_1_0_without_a_host_is_answered(connection: socket.socket) -> None:
    connection.sendall(b"GET /livez HTTP/1.0\r\n\r\n")
    assert read_answer(connection)[0] == 200


def test_a_slash_at_the_end_of_a_path_changes_nothing(client: httpx.Client, french: str) -> None:
    """Not even by a redirect: many clients send no body to the new address."""
    for path in ("/v1/models", f"/v1/models/{BASE}", "/adapters", f"/adapters/{french}", "/livez"):
        answer = client.get(f"{path}/")
        assert (answer.status_code, answer.json()) == (200, client.get(path).json()), path
    made = {"prompt": "Translate the English word to French.", "name": "french"}
    chat = {"adapter_id": french, "query": "x", "max_tokens": 1}
    for path, body in {CHAT: BODY, "/chat": chat, "/generate-adapter": made}.items():
        assert client.post(f"{path}/", json=body).status_code == 200, path
    form: Any = {"files": {"file": ("x.jsonl", b"{}")}, "data": {"purpose": "fine-tune"}}
    bare, slashed = (client.post(path, **form) for path in ("/v1/files", "/v1/files/"))
    assert slashed.status_code == bare.status_code
    assert slashed.json()["error"]["message"] == bare.json()["error"]["message"]
    assert client.get("/static/").status_code == 404
    assert client.get("/nothing/").status_code == 404


@pytest.mark.parametrize("target", ["http://{}", "HTTPS://{}"])
def test_a_target_in_the_absolute_form_is_its_path(connection: socket.socket, target: str) -> None:
    """As some proxies send it. Its host counts, not that of the header (RFC 9112, 3.2.2)."""
    start = target.format("127.0.0.1")
    connection.sendall(head("", method="GET", path=f"{start}/v1/models/{BASE}?limit=1"))
    status, body = read_answer(connection)
    assert (status, json.loads(body)["id"]) == (200, BASE)
    connection.sendall(head(f"Content-Length: {len(RAW)}\r\n", path=start + CHAT) + RAW)
    assert read_answer(connection)[0] == 200
    connection.sendall(head("", method="GET", path=start))
    assert read_answer(connection)[1].startswith(b"<!doctype html>")


def test_the_headers_of_a_proxy_on_this_machine_are_read_once(client: httpx.Client, french: str) -> None:
    """uvicorn would read them too, and take the client's address for the proxy's."""
    headers = {"X-Forwarded-For": "1.2.3.4", "X-Forwarded-Prefix": "/llgbm"}
    shown = client.get(f"/adapters/{french}", headers=headers).json()
    assert shown["links"]["adapter"] == f"/llgbm/adapters/{french}"


async def test_an_idle_connection_is_kept_as_long_as_the_setting_says(tmp_path: Path) -> None:
    assert Settings(_env_file=None).keep_alive_seconds == 75
    assert server_config(FastAPI(), make_settings(tmp_path)).timeout_keep_alive == 75
    config = server_config(FastAPI(), make_settings(tmp_path, keep_alive_seconds=1))
    config.load()
    loop = asyncio.get_running_loop()
    listener = await loop.create_server(lambda: config.http_protocol_class(config, ServerState(), {}), "127.0.0.1", 0)  # type: ignore[call-arg]
    async with listener:
        reader, writer = await asyncio.open_connection(*listener.sockets[0].getsockname())
        writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        start = time.monotonic()
        while await asyncio.wait_for(reader.read(1000), 10):
            pass
        assert 0.8 < time.monotonic() - start < 8
        writer.close()
