from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import anyio
import httpx
import pytest
from fastapi import FastAPI, Request, Response
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from starlette.requests import ClientDisconnect
from starlette.types import Message

from service.http import errors
from service.http.file_response import Part, PartsResponse, send_file

CONTENT = bytes(range(256)) * 3


def serving(folder: Path) -> httpx.AsyncClient:
    path = folder / "file"
    path.write_bytes(CONTENT)
    app = FastAPI()
    errors.install(app)

    @app.api_route("/file", methods=["GET", "HEAD"])
    async def file(request: Request) -> Response:
        return await send_file(
            request,
            path,
            size=len(CONTENT),
            sha256=hashlib.sha256(CONTENT).hexdigest(),
            media_type="application/octet-stream",
            filename="file",
        )

    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test")


@hypothesis_settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=st.one_of(st.none(), st.integers(0, 900)), last=st.one_of(st.none(), st.integers(0, 900)))
async def test_a_range_is_the_part_of_the_file_that_it_names(
    tmp_path: Path, first: int | None, last: int | None
) -> None:
    header = f"bytes={'' if first is None else first}-{'' if last is None else last}"
    async with serving(tmp_path) as client:
        answer = await client.get("/file", headers={"Range": header})
    size = len(CONTENT)
    if (first is None and last is None) or (first is not None and last is not None and last < first):
        assert (answer.status_code, answer.content) == (200, CONTENT)
        return
    expected = CONTENT[-last:] if first is None and last else CONTENT[first : None if last is None else last + 1]
    if first is None and last == 0:
        expected = b""
    if not expected:
        assert answer.status_code == 416
        assert answer.headers["Content-Range"] == f"bytes */{size}"
    else:
        assert (answer.status_code, answer.content) == (206, expected)
        assert int(answer.headers["Content-Length"]) == len(expected)


@pytest.mark.parametrize("headers", [{}, {"Range": "bytes=1-4"}])
async def test_head_has_the_headers_of_get_and_no_body(tmp_path: Path, headers: dict[str, str]) -> None:
    async with serving(tmp_path) as client:
        get, head = await client.get("/file", headers=headers), await client.head("/file", headers=headers)
    assert head.status_code == get.status_code
    assert head.content == b""
    assert head.headers == get.headers


@pytest.mark.parametrize("version", ["2.3", "2.4"])
async def test_a_file_is_closed_when_the_client_is_gone_before_the_first_byte(tmp_path: Path, version: str) -> None:
    (tmp_path / "file").write_bytes(CONTENT)
    file = await anyio.open_file(tmp_path / "file", "rb")

    async def receive() -> Message:
        await asyncio.sleep(60)
        return {"type": "http.disconnect"}

    async def send(_: Message) -> None:
        raise OSError("the client is gone")

    answer = PartsResponse([Part(file, 0, len(CONTENT))], 200, {}, "application/octet-stream")
    with pytest.raises((OSError, ClientDisconnect)):
        await answer({"type": "http", "asgi": {"spec_version": version}}, receive, send)
    assert file.wrapped.closed
