from __future__ import annotations

import pytest

from llgbm.errors import AdapterFormatError, AdapterMismatchError, ConfigError
from service.adapters.errors import NameTakenError, StoreFullError
from service.engine.interface import (
    DeadlineError,
    EngineError,
    GrammarError,
    QueueFullError,
    RefusedError,
    StoppedError,
    UnavailableError,
    UnstableError,
    UpstreamError,
)
from service.http.errors import answer_to

ERRORS = [
    (QueueFullError("full", 3.2), 429, "queue_full"),
    (DeadlineError("late"), 504, "deadline_exceeded"),
    (StoppedError("stopping"), 503, "draining"),
    (UnstableError("too large"), 422, "adapter_unstable"),
    (GrammarError("too many"), 422, "invalid_value"),
    (UnavailableError("nobody", 1), 503, "engine_unavailable"),
    (UpstreamError("failed"), 502, "engine_error"),
    (RefusedError("too long"), 400, "bad_request"),
    (EngineError("private"), 500, "internal_error"),
    (StoreFullError("no room"), 507, "insufficient_storage"),
    (NameTakenError("taken"), 409, "name_taken"),
    (AdapterMismatchError("other base"), 422, "adapter_mismatch"),
    (AdapterFormatError("torn"), 422, "adapter_invalid"),
    (ConfigError("out of range"), 422, "adapter_invalid"),
    (ValueError("private"), 500, "internal_error"),
]


@pytest.mark.parametrize(("error", "status", "code"), ERRORS, ids=lambda value: type(value).__name__)
def test_each_error_has_its_status(error: Exception, status: int, code: str) -> None:
    answer = answer_to(error)
    assert (answer.status_code, answer.body["error"]["code"]) == (status, code)
    assert "private" not in answer.body["error"]["message"]
    assert answer.headers.get("Retry-After") == {429: "4", 503: "1"}.get(status)
