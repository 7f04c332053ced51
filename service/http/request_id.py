"""The id of the current request."""

from __future__ import annotations

from contextvars import ContextVar

REQUEST_ID: ContextVar[str] = ContextVar("llgbm_request_id", default="")
"""Set by `service.http.request_context`; empty outside of a request."""
