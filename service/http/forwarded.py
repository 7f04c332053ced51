"""The path prefix, scheme and client address that a proxy in front of the service reports.

A proxy that exposes the service under `/llgbm` may strip that prefix or keep it; both work. After this middleware,
`root_path` of the scope is the prefix and `path` begins with it, as ASGI defines; `own_path` is the rest of the path.
Headers are trusted only if the connection comes from a trusted proxy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import Depends, Request
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from service.setting_values import checked_path


class ForwardedMiddleware:
    """The outermost middleware.

    Args:
        root_path: the prefix; empty to use the header `X-Forwarded-Prefix`.
        trusted: addresses and networks of the proxies, or *.
    """

    def __init__(self, app: ASGIApp, root_path: str, trusted: Sequence[str]) -> None:
        inner: Any = app  # uvicorn has its own types for the same protocol
        self._root_path = root_path
        self._app = ProxyHeadersMiddleware(inner, ["*"] if "*" in trusted else list(trusted))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with the prefix, scheme and address that the client knows."""
        if scope["type"] == "http":
            prefix = self._root_path or self._forwarded_prefix(scope)
            if prefix:
                path = scope["path"]
                if path != prefix and not path.startswith(f"{prefix}/"):
                    path = prefix + path
                scope = {**scope, "root_path": prefix, "path": path}
        typed: Any = (scope, receive, send)
        await self._app(*typed)

    def _forwarded_prefix(self, scope: Scope) -> str:
        peer = (scope.get("client") or (None,))[0]
        if peer not in self._app.trusted_hosts:
            return ""
        # each proxy appends its own prefix; the outermost comes first
        values = ",".join(Headers(scope=scope).getlist("x-forwarded-prefix")).split(",")
        try:
            return "".join(map(checked_path, values))
        except ValueError:
            return ""


def own_path(scope: Scope) -> str:
    """The path without the prefix; `/` if nothing is left."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", "")) or "/"


def _root_path(request: Request) -> str:
    return str(request.scope.get("root_path", ""))


RootPath = Annotated[str, Depends(_root_path)]
"""Prefix for the paths of links, such as `/llgbm`; may be empty."""
