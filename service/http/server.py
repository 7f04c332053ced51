"""The uvicorn configuration, for the process and for the tests."""

from __future__ import annotations

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from service.settings import Settings


class PlainHTTP(H11Protocol):
    """HTTP/1.1 without upgrades: an offer of another protocol is ignored, as RFC 9110 (7.8) allows.

    Java's client offers h2c in its first request, and uvicorn's other parser loses the body of such a request.
    """

    def _should_upgrade(self) -> bool:
        # otherwise h11 stops reading after the request, and a disconnect would not be noticed
        self.conn._cstate.pending_switch_proposals.clear()
        return False


def server_config(app: FastAPI, settings: Settings) -> uvicorn.Config:
    """The configuration of a server for `app`."""
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=PlainHTTP,
        ws="none",
        timeout_keep_alive=settings.keep_alive_seconds,
        log_config=None,
        access_log=False,
        proxy_headers=False,  # `service.http.forwarded` reads them, and needs the address of the proxy itself
        server_header=False,
        timeout_graceful_shutdown=5,
    )
