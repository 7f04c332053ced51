"""Reads bodies as JSON whatever their Content-Type: `curl -d` and many clients send a wrong type, or none.

A browser can send cross-origin requests without a preflight, but not with a JSON type. These requests have an Origin
header, so a request with an Origin must name the JSON type. Otherwise any web page could make adapters here.

Files are uploaded as forms, which a browser sends cross-origin without a preflight. So a form with an Origin must come
from this service's own page or have an Authorization header, which needs a preflight.
"""

from __future__ import annotations

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import ApiError
from service.http.errors import GIVEN_TYPE, answer_to, wrong_type
from service.http.forwarded import client_host, own_path

_WITH_BODY = frozenset({"POST", "PUT", "PATCH"})
_FORMS = frozenset({"/v1/files"})
"""Paths that take a form."""


class JsonBodies:
    """Middleware that marks a body as JSON. If it is not JSON, the error handlers answer 415."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with a JSON type, or refuse it."""
        if scope["type"] == "http" and scope["method"] in _WITH_BODY:
            try:
                self._check(scope)
            except ApiError as error:
                await answer_to(error).response()(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        headers = MutableHeaders(scope=scope)
        coding = headers.get("content-encoding", "identity").strip().lower()
        if coding not in ("", "identity"):
            raise ApiError(
                415,
                f"Content-Encoding is {coding!r}, and compressed bodies are not read here; send the body as it is",
                headers={"Accept-Encoding": "identity"},
            )
        given = headers.get("content-type", "")
        if own_path(scope) in _FORMS and given.lower().startswith("multipart/form-data"):
            if "origin" in headers and "authorization" not in headers and not _is_own(scope, headers):
                raise ApiError(403, "a page of another origin may upload files with an Authorization header only")
            return
        subtype = given.partition(";")[0].strip().lower().partition("/")[2]
        if subtype == "json" or subtype.endswith("+json"):
            return
        if headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers:
            return  # there is no body
        if "origin" in headers:
            raise wrong_type(given)
        scope[GIVEN_TYPE] = given
        headers["content-type"] = "application/json"


def _is_own(scope: Scope, headers: MutableHeaders) -> bool:
    """Whether the request comes from a page of this service."""
    return headers["origin"].partition("://")[2].lower() == client_host(scope)
