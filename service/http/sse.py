"""Server-sent events, and the handling of client disconnects."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from starlette.types import Receive, Scope, Send

from service.errors import ApiError
from service.http.errors import answer_to

_T = TypeVar("_T")
DONE = "data: [DONE]\n\n"


def event(model: BaseModel) -> str:
    """A model as one event, without unset fields."""
    return f"data: {json.dumps(model.model_dump(exclude_unset=True), ensure_ascii=False)}\n\n"


class EventStream(StreamingResponse):
    """Streams events and always calls `close`, even if the client disconnects before the first event.

    An error raised by `events` is sent as an event, because the status has already been sent.
    """

    def __init__(self, events: AsyncIterator[str], close: Callable[[], None], headers: dict[str, str]) -> None:
        super().__init__(
            _with_errors(events),
            media_type="text/event-stream",
            # proxies must pass on every event at once
            headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no", **headers},
        )
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events and always call `close`."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._close()


async def _with_errors(events: AsyncIterator[str]) -> AsyncIterator[str]:
    try:
        async for item in events:
            yield item
    except Exception as error:
        yield answer_to(error).event()
    yield DONE


async def while_connected(request: Request, work: Coroutine[Any, Any, _T]) -> _T:
    """Await `work`, and cancel it if the client disconnects.

    Raises:
        ApiError: 499 (nginx's number), the client disconnected.
    """
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ApiError(499, "the client hung up before its answer was complete", code="client_closed_request")
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
