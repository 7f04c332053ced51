"""Request ids, JSON logs and the middleware around all others but CORS.

Every request has an id (the client's X-Request-ID if it is a sane one), which is in the answer's headers, in every
error and in every log line. Prompts, answers, keys and query strings are never logged: lines carry the route's
template, not the path. What the metrics are is in `service.observability.metrics`.
"""

from __future__ import annotations

import logging
import re
import sys
import time
import traceback
import uuid
from contextvars import ContextVar
from typing import TYPE_CHECKING

import structlog
from fastapi.telemetry import TelemetryConfig
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llgbm.errors import LLGBMError

if TYPE_CHECKING:
    from service.settings import Settings
    from service.state import State

_REQUEST_ID: ContextVar[str] = ContextVar("llgbm_request_id", default="")
_SANE_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_QUIET_ROUTES = frozenset({"/livez", "/readyz", "/metrics"})


def request_id() -> str:
    """Id of the request that is being answered; empty outside of one."""
    return _REQUEST_ID.get()


def configure_logging(settings: Settings) -> None:
    """Send structlog's and the standard library's records to standard output, one JSON object a line."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    render: list[structlog.typing.Processor] = [_tell_exception]
    render.append(
        structlog.processors.JSONRenderer() if settings.log_format == "json" else structlog.dev.ConsoleRenderer()
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, settings.log_level.upper())),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    root = logging.getLogger()
    for old in [h for h in root.handlers if getattr(h, "llgbm", False)]:
        root.removeHandler(old)
    handler.llgbm = True  # type: ignore[attr-defined]
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    for name in ("service", "uvicorn.error"):
        logging.getLogger(name).setLevel(settings.log_level.upper())


def _tell_exception(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Replace `exc_info` by what was raised and where.

    The message of an exception may quote what it was about, a prompt for one, so only our own errors and those of the
    operating system, which do not, are quoted.
    """
    info = event.pop("exc_info", None)
    if info is True:
        info = sys.exc_info()
    error = info[1] if isinstance(info, tuple) else info
    if isinstance(error, BaseException):
        lines = []
        while error is not None:
            told = f": {error}" if isinstance(error, (LLGBMError, OSError)) else ""
            lines.append(f"{type(error).__name__}{told}")
            frames = traceback.extract_tb(error.__traceback__)
            lines += [f"  {frame.filename}:{frame.lineno} in {frame.name}" for frame in frames]
            error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        event["exception"] = "\n".join(lines)
    return event


class RequestContext:
    """Middleware: request id, access log, HTTP metrics, and the 500 of anything that nobody caught."""

    def __init__(self, app: ASGIApp, state: State) -> None:
        self.app, self._state, self._metrics = app, state, state.metrics
        self._log = structlog.get_logger("service.access")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        from service.http.errors import internal_error

        given = next((v for k, v in scope["headers"] if k == b"x-request-id"), b"")
        identity = given.decode() if _SANE_ID.fullmatch(given) else uuid.uuid4().hex
        token = _REQUEST_ID.set(identity)
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=identity)
        start, status = time.perf_counter(), 0
        counts = scope["path"] not in _QUIET_ROUTES
        self._state.active += counts

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
        except Exception:
            structlog.get_logger("service").exception("unhandled_error", route=_route(scope))
            if status:  # the head is out, and the body cannot be completed: let the server cut the connection
                raise
            await internal_error().response()(scope, receive, send_with_id)
        finally:
            self._state.active -= counts
            seconds, route = time.perf_counter() - start, _route(scope)
            # 499, as nginx has it: the client went away before there was an answer
            self._metrics.on_http(scope["method"], route, status or 499, seconds)
            if route not in _QUIET_ROUTES:
                self._log.info(
                    "request",
                    method=scope["method"],
                    route=route,
                    status=status or 499,
                    milliseconds=round(1000 * seconds, 1),
                    client_key=scope.get("llgbm.key"),
                )
            _REQUEST_ID.reset(token)


def _route(scope: Scope) -> str:
    """The route's template, `/adapters/{adapter_id}`; one name for all that match none."""
    path = getattr(scope.get("route"), "path", None)
    return path if isinstance(path, str) else "unmatched"


def tracing(wanted: bool) -> TelemetryConfig:
    """FastAPI's own OpenTelemetry hook: spans of requests to where the OTEL_* variables say, or nothing at all.

    Its logs and its metrics stay off: the former would hold messages of exceptions, and /metrics has the latter.

    Raises:
        RuntimeError: LLGBM_OTEL is set but the extra is not installed.
    """
    if wanted:
        try:
            import opentelemetry.exporter.otlp.proto.http  # noqa: F401
        except ImportError as error:
            raise RuntimeError(
                "LLGBM_OTEL is set, but OpenTelemetry's exporter is not installed: pip install -e '.[otel]'"
            ) from error
    return {"tracing": wanted, "metrics": False, "logs": False, "operation_spans": False, "auto_configure": wanted}


def without_password(address: str) -> str:
    """An address fit for a log: what stands before the @ of its host is left out."""
    scheme, separator, rest = address.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}{separator}{host.rpartition('@')[2]}{slash}{path}" if separator else address
