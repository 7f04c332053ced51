"""The errors of the engine, the store and the library in HTTP's terms: one table for all use cases."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TypeVar

import structlog
from fastapi import Request
from fastapi.responses import JSONResponse

from llgbm.errors import AdapterFormatError, AdapterMismatchError, ConfigError
from service.adapters.errors import NameTakenError, StoreFullError, StoreUnavailableError
from service.engine.interface import (
    DeadlineError,
    EngineError,
    QueueFullError,
    RefusedError,
    StoppedError,
    UnavailableError,
    UnstableError,
    UpstreamError,
)
from service.errors import ApiError
from service.http.errors import internal_error

_log = structlog.get_logger("service.translation")
_T = TypeVar("_T")
OF_STORE = (StoreFullError, StoreUnavailableError)
"""Errors of the store that may come of any request, so that the application answers them wherever they were raised."""
KNOWN = (EngineError, *OF_STORE, NameTakenError, AdapterMismatchError, AdapterFormatError, ConfigError)


def as_api_error(error: Exception) -> ApiError:
    """What the client is told of `error`; 500 for what is not its business."""
    if isinstance(error, QueueFullError):
        return ApiError(429, f"{error}; come back later", code="queue_full", retry_after=error.retry_after)
    if isinstance(error, DeadlineError):
        return ApiError(504, f"{error}; ask for fewer tokens, or again when there is less load")
    if isinstance(error, StoppedError):
        return ApiError(503, f"{error}; send the request again", code="draining", retry_after=1)
    if isinstance(error, UnstableError):
        return ApiError(422, str(error), code="adapter_unstable")
    if isinstance(error, UnavailableError):
        return ApiError(503, str(error), code="engine_unavailable", retry_after=error.retry_after)
    if isinstance(error, UpstreamError):
        return ApiError(502, str(error))
    if isinstance(error, RefusedError):
        return ApiError(400, str(error))
    if isinstance(error, StoreFullError):
        return ApiError(507, str(error))
    if isinstance(error, StoreUnavailableError):
        _log.warning("store_unavailable", error=str(error), cause=str(error.__cause__))
        return ApiError(503, f"{error}; try again later", code="store_unavailable", retry_after=5)
    if isinstance(error, NameTakenError):
        return ApiError(409, f"{error}; choose another", code="name_taken", param="name")
    if isinstance(error, AdapterMismatchError):
        return ApiError(422, str(error), code="adapter_mismatch")
    if isinstance(error, (AdapterFormatError, ConfigError)):
        return ApiError(422, str(error), code="adapter_invalid")
    return internal_error()


async def answer(_: Request, error: Exception) -> JSONResponse:
    """The answer to an error of `OF_STORE` that nobody has translated."""
    return as_api_error(error).response()


async def translated(work: Awaitable[_T]) -> _T:
    """Await `work`, and raise what is known as an ApiError."""
    try:
        return await work
    except KNOWN as error:
        raise as_api_error(error) from error
