"""`ApiError`, the base class of all errors that clients see. Each has an HTTP status and a code.

Routes, use cases, engines and stores raise these errors. Only `service.http.errors` turns them into responses. This
module does not depend on a web framework.
"""

from __future__ import annotations

from collections.abc import Mapping


class ApiError(Exception):
    """An error that the client sees.

    Args:
        status: HTTP status. A 500 without a `code` is an internal error: its message goes only to the log, and the
            client gets the request id.
        message: the problem, what was expected, and what to do next.
        code: machine-readable reason; by default the usual one of the status.
        param: the field of the request that caused the error.
        retry_after: seconds after which the same request may succeed.
        headers: additional headers of the response.
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
