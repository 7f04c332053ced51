"""One envelope for every error: `{"error": {"message", "type", "code", "param"}, "request_id"}`.

The inner object is OpenAI's, so that their client raises its usual exceptions. `ApiError` is raised by routes, use
cases and middleware alike; `install` makes FastAPI answer everything else (404, 405, 422, ...) in the same form;
`event` is the same envelope as a server-sent event, for a stream that fails after its head was sent.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from service.http.request_context import request_id

_log = structlog.get_logger("service.errors")

_TYPES = {
    400: ("invalid_request_error", "bad_request"),
    401: ("authentication_error", "invalid_api_key"),
    403: ("permission_error", "forbidden"),
    404: ("invalid_request_error", "not_found"),
    405: ("invalid_request_error", "method_not_allowed"),
    406: ("invalid_request_error", "not_acceptable"),
    409: ("conflict_error", "conflict"),
    413: ("invalid_request_error", "too_large"),
    416: ("invalid_request_error", "range_not_satisfiable"),
    422: ("invalid_request_error", "invalid_value"),
    429: ("rate_limit_error", "rate_limited"),
    500: ("server_error", "internal_error"),
    502: ("server_error", "engine_error"),
    503: ("server_error", "unavailable"),
    504: ("server_error", "deadline_exceeded"),
    507: ("server_error", "insufficient_storage"),
}
_FALLBACK = ("server_error", "error")


class ApiError(HTTPException):
    """An error that the client sees.

    It is an HTTPException so that FastAPI lets it pass wherever it is raised, also while a body is being read.

    Args:
        status: HTTP status.
        message: what was wrong, what was expected, what to do next.
        code: machine-readable reason; the usual one of the status if not given.
        param: the field of the request that is to blame.
        retry_after: seconds after which to try again.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        all_headers = dict(headers or {})
        if retry_after is not None:
            all_headers["Retry-After"] = str(max(1, math.ceil(retry_after)))
        super().__init__(status, message, all_headers or None)
        self.message, self.param = message, param
        self.code = code or _TYPES.get(status, _FALLBACK)[1]

    def envelope(self) -> dict[str, Any]:
        """The body, with the id of the current request."""
        return {
            "error": {
                "message": self.message,
                "type": _TYPES.get(self.status_code, _FALLBACK)[0],
                "code": self.code,
                "param": self.param,
            },
            "request_id": request_id(),
        }

    def response(self) -> JSONResponse:
        """The envelope as an answer."""
        return JSONResponse(self.envelope(), self.status_code, self.headers)

    def event(self) -> str:
        """The envelope as one server-sent event."""
        return f"data: {json.dumps(self.envelope(), ensure_ascii=False)}\n\n"


def internal_error() -> ApiError:
    """What a client is told of a fault of ours: nothing of the inside, but the id to find it in the log."""
    return ApiError(500, "an error inside the service; its log holds the cause under the request_id of this answer")


async def _on_http_exception(_: Request, error: Exception) -> JSONResponse:
    if isinstance(error, ApiError):
        if error.status_code == 500:  # the client is told to look for it here
            _log.error("internal_error", code=error.code, exc_info=error.__cause__)
        return error.response()
    if not isinstance(error, HTTPException):
        return internal_error().response()
    if isinstance(error.__cause__, ClientDisconnect):
        return ApiError(499, "the client hung up while it sent its request", code="client_closed_request").response()
    if error.status_code == 400:  # what FastAPI makes of a body that is no text
        return ApiError(422, "the body is not JSON in UTF-8").response()
    message = {
        404: "there is no such path; GET /openapi.json lists all of them",
        405: "this path does not take that method; the Allow header lists those that it takes",
    }.get(error.status_code, str(error.detail))
    return ApiError(error.status_code, message, headers=error.headers).response()


async def _on_validation_error(_: Request, error: Exception) -> JSONResponse:
    """All that is wrong with the request in one message, and the first field as `param`.

    The values themselves are left out: they may be prompts, and clients print errors into logs.
    """
    if not isinstance(error, RequestValidationError):
        return internal_error().response()
    problems = []
    for item in error.errors():
        if item["type"] == "json_invalid":
            return ApiError(422, "the body is not JSON").response()
        place = ".".join(str(part) for part in item["loc"] if part not in ("body", "query", "path", "header"))
        problems.append((place, item["msg"]))
    message = "; ".join(f"{place or 'body'}: {text}" for place, text in problems[:8])
    return ApiError(422, message, param=problems[0][0] or None if problems else None).response()


def install(app: FastAPI) -> None:
    """Make `app` answer every error in the envelope."""
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
