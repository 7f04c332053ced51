from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import anyio
import pytest
from fastapi import Request

from service.errors import ApiError
from service.http.errors import answer_to
from service.http.sse import DONE, EventStream, while_connected


def request_that(*messages: str, hangs: bool = True) -> Request:
    """A request whose client sends these messages and then nothing."""
    waiting = list(messages)

    async def receive() -> dict[str, object]:
        if waiting:
            return {"type": waiting.pop(0)}
        if hangs:
            await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    return Request({"type": "http", "headers": [], "method": "GET", "path": "/"}, receive)


async def test_work_is_done_while_the_client_waits() -> None:
    async def work() -> int:
        await asyncio.sleep(0.01)
        return 3

    assert await while_connected(request_that("http.request"), work()) == 3


async def test_errors_of_the_work_come_through() -> None:
    async def work() -> int:
        raise ApiError(404, "not there")

    with pytest.raises(ApiError, match="not there"):
        await while_connected(request_that(), work())


async def test_the_work_is_cancelled_when_the_client_hangs_up() -> None:
    cancelled = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    with pytest.raises(ApiError) as caught:
        await while_connected(request_that("http.request", hangs=False), work())
    assert caught.value.status_code == 499
    assert cancelled.is_set()


async def test_the_work_is_cancelled_with_who_waits_for_it() -> None:
    cancelled = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    waiting = asyncio.ensure_future(while_connected(request_that(), work()))
    await asyncio.sleep(0.01)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert cancelled.is_set()


async def send_stream(events: AsyncIterator[str], *, gone: bool = False) -> tuple[str, int]:
    """The sent text, and how often the stream was closed."""
    closed, sent = 0, b""

    def close() -> None:
        nonlocal closed
        closed += 1

    async def receive() -> dict[str, object]:
        if not gone:
            await anyio.sleep_forever()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, object]) -> None:
        nonlocal sent
        body = message.get("body", b"")
        assert isinstance(body, bytes)
        sent += body

    stream = EventStream(events, close, {"X-Adapter-Id": "x"})
    assert stream.headers["content-type"].startswith("text/event-stream")
    await stream({"type": "http", "asgi": {"spec_version": "2.3"}}, receive, send)  # type: ignore[arg-type]
    return sent.decode(), closed


async def test_a_stream_ends_with_done_and_is_closed() -> None:
    async def events() -> AsyncIterator[str]:
        yield "data: 1\n\n"

    assert await send_stream(events()) == ("data: 1\n\n" + DONE, 1)


async def test_an_error_is_an_event_before_the_end() -> None:
    error = ApiError(503, "stopping")

    async def events() -> AsyncIterator[str]:
        yield "data: 1\n\n"
        raise error

    async def broken() -> AsyncIterator[str]:
        yield "data: 1\n\n"
        raise ValueError("private")

    assert await send_stream(events()) == ("data: 1\n\n" + answer_to(error).event() + DONE, 1)
    text, closed = await send_stream(broken())
    assert '"internal_error"' in text
    assert "private" not in text
    assert closed == 1


async def test_a_client_that_is_gone_before_the_first_event_closes_the_stream_too() -> None:
    async def events() -> AsyncIterator[str]:
        await anyio.sleep_forever()
        yield "never"

    text, closed = await send_stream(events(), gone=True)
    assert (text, closed) == ("", 1)
