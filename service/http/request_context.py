"""Request ids, the access log and HTTP metrics: a middleware inside of CORS and around all others.

Every request has an id (the client's X-Request-ID if it is valid), which is in the response headers, in every error
and in every log line. Prompts, answers, keys and query strings are never logged: log lines have the route's
template, not the path.
"""

from __future__ import annotations

import re
import time
import uuid
from typing import Protocol

import structlog
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.http.errors import answer_to
from service.http.forwarded import own_path
from service.http.request_id import REQUEST_ID
from service.observability.metrics import Metrics

_SANE_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_UNCOUNTED_ROUTES = frozenset({"/livez", "/readyz", "/metrics"})


class RequestCounter(Protocol):
    """Holds the number of active requests."""

    active: int


class RequestContext:
    """Middleware: request id, access log, HTTP metrics, and the 500 response for uncaught exceptions."""

    def __init__(self, app: ASGIApp, metrics: Metrics, counter: RequestCounter) -> None:
        self.app, self._metrics, self._counter = app, metrics, counter
        self._log = structlog.get_logger("service.access")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = next((v for k, v in scope["headers"] if k == b"x-request-id"), b"")
        identity = given.decode() if _SANE_ID.fullmatch(given) else uuid.uuid4().hex
        token = REQUEST_ID.set(identity)
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=identity)
        start, status = time.perf_counter(), 0
        counts = own_path(scope) not in _UNCOUNTED_ROUTES
        self._counter.active += counts

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = identity
                headers["X-Content-Type-Options"] = "nosniff"
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        except Exception as error:
            answer = answer_to(error)
            if status:  # the headers are sent and the body cannot be completed: let the server close the connection
                raise
            await answer.response()(scope, receive, send_with_id)
        finally:
            self._counter.active -= counts
            seconds, route = time.perf_counter() - start, _route(scope)
            # 499, as in nginx: the client disconnected before the response
            self._metrics.on_http(scope["method"], route, status or 499, seconds)
            if route not in _UNCOUNTED_ROUTES:
                self._log.info(
                    "request",
                    method=scope["method"],
                    route=route,
                    status=status or 499,
                    milliseconds=round(1000 * seconds, 1),
                    client_key=scope.get("llgbm.key"),
                )
            REQUEST_ID.reset(token)


def _route(scope: Scope) -> str:
    """The route's template, `/adapters/{adapter_id}`; one name for all paths without a route."""
    path = getattr(scope.get("route"), "path", None)
    return path if isinstance(path, str) else "unmatched"
