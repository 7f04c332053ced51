"""The request as the client sent it: without the traces of proxies and of unusual forms of its target.

A proxy that exposes the service under `/llgbm` may strip that prefix or keep it; both work. After this middleware,
`root_path` of the scope is the prefix and `path` begins with it, as ASGI defines; `own_path` is the rest of the path.
Headers are trusted only if the connection comes from a trusted proxy.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import Depends, Request
from fastapi.responses import RedirectResponse
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from service.http.proxy_headers import TrustedProxies
from service.setting_values import checked_path

_ABSOLUTE = re.compile(r"https?://([^/]*)(.*)", re.IGNORECASE | re.DOTALL)
_HOST = "llgbm.host"


class ForwardedMiddleware:
    """The outermost middleware.

    Args:
        root_path: the prefix; empty to use the header `X-Forwarded-Prefix`.
        trusted: addresses and networks of the proxies, or *.
    """

    def __init__(self, app: ASGIApp, root_path: str, trusted: Sequence[str]) -> None:
        self._app, self._root_path, self._trusted = app, root_path, TrustedProxies(trusted)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with the target, scheme and address that the client knows."""
        if scope["type"] == "http":
            scope = _with_path(scope)
            prefix = self._root_path
            if _peer(scope) in self._trusted:
                headers = Headers(scope=scope)
                prefix = prefix or _forwarded_prefix(headers)
                scope.update(self._told(headers))
            prefix = prefix or scope.get("root_path", "")  # Ray Serve sets it
            path = scope["path"]
            if prefix and path == prefix:  # the page's links are relative to the slash
                await RedirectResponse(f"{prefix}/")(scope, receive, send)
                return
            # a trailing slash is taken off here for all routes, since some clients do not send a body to a redirect
            own = path.removeprefix(prefix) if path.startswith(f"{prefix}/") else path
            scope.update(root_path=prefix, path=prefix + (own.rstrip("/") or "/"))
        await self._app(scope, receive, send)

    def _told(self, headers: Headers) -> dict[str, Any]:
        """What trusted proxies say about the client's connection."""
        hop = self._trusted.client(headers)
        if hop is None:
            return {}
        told = {
            "client": (hop.address, 0) if hop.address else None,
            "scheme": hop.scheme if hop.scheme in ("http", "https") else None,
            _HOST: hop.host,
        }
        return {key: value for key, value in told.items() if value}


def _peer(scope: Scope) -> str:
    return str((scope.get("client") or ("",))[0])


def _with_path(scope: Scope) -> Scope:
    """The scope with a path as its target: in the absolute form the host of the target counts (RFC 9112, 3.2.2)."""
    target = _ABSOLUTE.match(scope["path"])
    if target is None:
        return {**scope}
    others = [(name, value) for name, value in scope["headers"] if name != b"host"]
    return {**scope, "path": target[2] or "/", "headers": [(b"host", target[1].encode()), *others]}


def _forwarded_prefix(headers: Headers) -> str:
    # each proxy appends its own prefix; the outermost comes first
    values = ",".join(headers.getlist("x-forwarded-prefix")).split(",")
    try:
        return "".join(map(checked_path, values))
    except ValueError:
        return ""


def own_path(scope: Scope) -> str:
    """The path without the prefix; `/` if nothing is left."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", "")) or "/"


def client_host(scope: Scope) -> str:
    """The host, and port if it is not the scheme's own, that the client addressed, in lower case.

    Not for the check of allowed hosts: a page in a browser of the same machine can send a header of a proxy too.
    """
    told: str | None = scope.get(_HOST)
    return (told or Headers(scope=scope).get("host", "")).lower()


def _root_path(request: Request) -> str:
    return str(request.scope.get("root_path", ""))


RootPath = Annotated[str, Depends(_root_path)]
"""Prefix for the paths of links, such as `/llgbm`; may be empty."""
