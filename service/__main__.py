"""`python -m service`: runs the application with uvicorn.

The first SIGTERM or SIGINT drains the service and then stops it. A second signal ends running answers immediately. The
exit status is 1 if the models cannot be loaded, and 2 if a setting is invalid.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import sys
from types import FrameType
from typing import Any

import structlog
import uvicorn
from pydantic import ValidationError

from service.app import create_app, drain, end_answers
from service.http.server import server_config
from service.models.loading import load_models_for_good
from service.settings import Settings, refused
from service.state import State


class DrainingServer(uvicorn.Server):
    """A server that still listens while it drains, so that /readyz can report the draining."""

    def __init__(self, config: uvicorn.Config, state: State) -> None:
        super().__init__(config)
        self._state = state
        self._draining: asyncio.Task[None] | None = None
        self._event_loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Remember the event loop, for the signal handler."""
        self._event_loop = asyncio.get_running_loop()
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain at the first signal. At the second, end all running answers and stop."""
        loop = self._event_loop
        if loop is not None and not self._state.draining:
            self._state.draining = True
            loop.call_soon_threadsafe(self._start_draining)
            return
        if loop is not None:
            loop.call_soon_threadsafe(end_answers, self._state)
        super().handle_exit(sig, frame)

    def _start_draining(self) -> None:
        structlog.get_logger("service").info("draining", requests=self._state.active)
        self._draining = asyncio.ensure_future(self._drain())

    async def _drain(self) -> None:
        await drain(self._state, seconds=self._state.settings.drain_seconds)
        self.should_exit = True

    def fail(self) -> None:
        """Stop because the service cannot work."""
        self.should_exit = True


def serve(**given: Any) -> int:
    """Serve until a signal stops the process; returns its exit status.

    Args:
        given: settings that override those of the environment.
    """
    try:
        settings = Settings(**given).with_default_hosts()
    except ValidationError as error:
        sys.stderr.write("".join(f"{line}\n" for line in refused(error)))
        return 2
    # llgbm reads it from the environment; the setting may come from a .env file
    os.environ["LLGBM_CACHE_DIR"] = str(settings.cache_dir)
    app = create_app(settings, load=load_models_for_good)
    state: State = app.state.llgbm
    server = DrainingServer(server_config(app, settings), state)
    state.on_failure = server.fail
    server.run()
    return 1 if state.failure is not None or not server.started else 0


def main() -> int:
    """Serve with the settings of the environment; returns the exit status."""
    argparse.ArgumentParser(
        prog="python -m service", description="Serves with the settings of the environment, see docs/OPERATIONS.md."
    ).parse_args()
    return serve()


if __name__ == "__main__":
    sys.exit(main())
