"""`ApiError`, the base of every error that a client is told: each carries its own HTTP status and code.

Routes, use cases, engines and stores raise them alike and nobody translates them: `service.http.errors` is the one
place where they become answers. This module knows no web framework.
"""

from __future__ import annotations

from collections.abc import Mapping


class ApiError(Exception):
    """An error that the client sees.

    Args:
        status: HTTP status. A 500 without a `code` is a fault of this service: its message is for the log, and the
            client is only told where to look for it.
        message: the problem, what was expected, and what to do next.
        code: machine-readable reason; the usual one of the status if not given.
        param: the field of the request that is to blame.
        retry_after: seconds after which the same request may succeed.
        headers: more headers of the answer.
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
        super().__init__(message)
        self.status_code, self.message, self.code, self.param = status, message, code, param
        self.retry_after, self.headers = retry_after, dict(headers or {})
