"""Bodies are JSON, whatever their Content-Type says: `curl -d` and many a client name a wrong one, or none.

Requests that a browser sends for a page of another origin without asking first can have no JSON type. They have an
Origin, so one with an Origin must name the type: no page makes adapters here without being allowed to.

A file is uploaded as a form. A browser sends forms for pages of other origins without asking first, but neither for
this service's own page nor with an Authorization header, so a form with an Origin must have one of the two.
"""

from __future__ import annotations

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import ApiError
from service.http.errors import GIVEN_TYPE, answer_to, wrong_type
from service.http.forwarded import own_path

_WITH_BODY = frozenset({"POST", "PUT", "PATCH"})
_FORMS = frozenset({"/v1/files"})
"""Paths that take a form."""


class JsonBodies:
    """Middleware: takes a body for JSON; a body that turns out to be none is answered 415 by the error handlers."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with the type that its body should have, or refuse it."""
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
            if "origin" in headers and "authorization" not in headers and not _is_own(headers):
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


def _is_own(headers: MutableHeaders) -> bool:
    """Whether the page that sends this came from here."""
    return headers["origin"].partition("://")[2].lower() == headers.get("host", "").lower()
