"""Turns errors into HTTP responses, in one envelope: `{"error": {"message", "type", "code", "param"}, "request_id"}`.

The inner object is OpenAI's, so that their client raises its usual exceptions. Exception handlers, middleware and event
streams all use `answer_to`; there is no other way from an exception to a response.
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
from starlette.types import Scope

from llgbm.errors import AdapterFormatError, AdapterMismatchError, ConfigError
from service.errors import ApiError
from service.http.request_id import REQUEST_ID

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
    415: ("invalid_request_error", "unsupported_media_type"),
    416: ("invalid_request_error", "range_not_satisfiable"),
    422: ("invalid_request_error", "invalid_value"),
    429: ("rate_limit_error", "rate_limited"),
    500: ("server_error", "internal_error"),
    502: ("server_error", "engine_error"),
    503: ("server_error", "unavailable"),
    504: ("server_error", "deadline_exceeded"),
    507: ("server_error", "insufficient_storage"),
}
GIVEN_TYPE = "llgbm.content_type"
"""Key of a request's scope: the Content-Type of a body that was read as JSON although it names another type."""
_FALLBACK = ("server_error", "error")
_LIBRARY = {
    AdapterMismatchError: "adapter_mismatch",
    AdapterFormatError: "adapter_invalid",
    ConfigError: "adapter_invalid",
}
"""Library errors that a request can cause, and their codes. Each is answered 422."""


class ErrorAnswer:
    """An error in the form that is sent, with the id of the current request."""

    def __init__(self, error: ApiError) -> None:
        kind, code = _TYPES.get(error.status_code, _FALLBACK)
        self.status_code, self.headers = error.status_code, dict(error.headers)
        if error.retry_after is not None:
            self.headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
        self.body: dict[str, Any] = {
            "error": {"message": error.message, "type": kind, "code": error.code or code, "param": error.param},
            "request_id": REQUEST_ID.get(),
        }

    def response(self) -> JSONResponse:
        """The envelope as a response."""
        return JSONResponse(self.body, self.status_code, self.headers)

    def event(self) -> str:
        """The envelope as one server-sent event, for a stream that fails after its headers were sent."""
        return f"data: {json.dumps(self.body, ensure_ascii=False)}\n\n"


def answer_to(error: Exception) -> ErrorAnswer:
    """The response to any exception. An internal error is logged, and the client gets only the request id."""
    told = _api_error(error)
    if told.status_code == 500:
        _log.error("internal_error", code=told.code, exc_info=error)
        if told.code is None:
            told = ApiError(
                500, "an error inside the service; its log holds the cause under the request_id of this answer"
            )
    elif told.status_code == 503 and error.__cause__ is not None:  # a service that this one depends on is down
        _log.warning(told.code or "unavailable", error=told.message, cause=str(error.__cause__))
    return ErrorAnswer(told)


def _api_error(error: Exception) -> ApiError:
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RequestValidationError):
        return _invalid(error)
    if isinstance(error, HTTPException):
        return _of_framework(error)
    code = next((code for kind, code in _LIBRARY.items() if isinstance(error, kind)), None)
    return ApiError(500, str(error)) if code is None else ApiError(422, str(error), code=code)


def _of_framework(error: HTTPException) -> ApiError:
    """An error of FastAPI or Starlette, with a message of this service."""
    if isinstance(error.__cause__, ApiError):  # raised while the body was being read
        return error.__cause__
    if isinstance(error.__cause__, ClientDisconnect):
        return ApiError(499, "the client hung up while it sent its request", code="client_closed_request")
    if error.status_code == 400:  # FastAPI's error for a body that is not text
        return _NotJSONError("the body is not JSON in UTF-8")
    message = {
        404: "there is no such path; GET /openapi.json lists all of them, and OpenAI's protocol is below /v1",
        405: "this path does not take that method; the Allow header lists those that it takes",
    }.get(error.status_code, str(error.detail))
    headers = dict(error.headers or {})
    if error.status_code == 405 and "GET" in (methods := headers.get("Allow", "").split(", ")):
        headers["Allow"] = ", ".join(sorted({*methods, "HEAD"}))
    return ApiError(error.status_code, message, headers=headers)


def wrong_type(given: str) -> ApiError:
    """A body that is not JSON, sent as `given`."""
    return ApiError(
        415,
        f"the header Content-Type is {given!r}; send JSON as application/json"
        if given
        else "the header Content-Type is missing; send JSON as application/json",
        headers={"Accept": "application/json"},
    )


def _invalid(error: RequestValidationError) -> ApiError:
    """All problems of the request in one message; `param` is the first field with a problem.

    The values are left out: they may be prompts, and clients write errors to logs.
    """
    problems: dict[str, list[str]] = {}
    for item in error.errors():
        if item["type"] == "json_invalid":
            return _NotJSONError("the body is not JSON")
        absent = item["type"] == "missing" or item.get("input") is None
        told = problems.setdefault(_place(item["loc"], absent, error.body), [])
        text = "it is not known; leave it out" if item["type"] == "extra_forbidden" else item["msg"]
        text = text.removeprefix("Value error, ")
        if text not in told:
            told.append(text)
    # for a field that allows several forms, keep only the problems of the closest form
    found = [place for place in problems if not any(other.startswith(f"{place}.") for other in problems if place)]
    message = "; ".join(f"{place or 'body'}: {_joined(problems[place])}" for place in found[:8])
    return ApiError(422, message, param=found[0] or None)


def _place(location: tuple[int | str, ...], absent: bool, body: Any) -> str:
    """The path of the wrong field in the body, without the names of union members that pydantic inserts."""
    source, *steps = location
    if source != "body":
        return ".".join(map(str, steps))
    path: list[str] = []
    for place, step in enumerate(steps):
        is_field = isinstance(step, int) or (
            isinstance(body, Mapping) and (step in body or (absent and place == len(steps) - 1))
        )
        if not is_field:
            continue
        path.append(str(step))
        try:
            body = body[step]
        except (LookupError, TypeError):
            body = None
    return ".".join(path)


def _joined(texts: list[str]) -> str:
    """All problems of one field in one sentence."""
    start = "Input should be "
    first, *others = texts
    return " or ".join([first, *(text.removeprefix(start) for text in others)])


class _NotJSONError(ApiError):
    """The body is not JSON."""

    def __init__(self, message: str) -> None:
        super().__init__(422, message)


def _of_request(error: ApiError, scope: Scope) -> ApiError:
    """A framework error, adapted to this request."""
    if isinstance(error, _NotJSONError) and GIVEN_TYPE in scope:
        return wrong_type(scope[GIVEN_TYPE])
    if error.status_code == 422 and getattr(scope.get("route"), "path", "").startswith("/v1/"):
        return ApiError(400, error.message, code=_TYPES[422][1], param=error.param)  # OpenAI uses 400 here
    return error


async def _handle(request: Request, error: Exception) -> JSONResponse:
    if isinstance(error, HTTPException) and error.status_code == 400 and error.__cause__ is None and _is_form(request):
        error = ApiError(400, f"the form cannot be read: {error.detail}")
    if isinstance(error, RequestValidationError | HTTPException):
        error = _of_request(_api_error(error), request.scope)
    return answer_to(error).response()


def _is_form(request: Request) -> bool:
    return request.headers.get("content-type", "").lower().startswith("multipart/form-data")


def install(app: FastAPI) -> None:
    """Make `app` answer every error with the envelope."""
    for kind in (ApiError, HTTPException, RequestValidationError, *_LIBRARY):
        app.add_exception_handler(kind, _handle)
