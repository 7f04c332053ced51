"""Applications for the tests of the service, in process or behind a real uvicorn."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI

from service.app import create_app
from service.http.server import server_config
from service.models.loading import LoadModels
from service.settings import Settings
from service.state import Services, State

Serving = Callable[..., AbstractAsyncContextManager[tuple[FastAPI, httpx.AsyncClient]]]
"""Runs an application with settings by name, until the end of its block"""
CHEESE = [{"role": "user", "content": "cheese"}]


def make_settings(folder: Path, **values: Any) -> Settings:
    """Settings with all folders in `folder` and without a `.env` file."""
    given = {"store_dir": folder / "store", "cache_dir": folder / "cache", "drain_seconds": 5, "log_level": "error"}
    return Settings(_env_file=None, **{**given, **values})


def state_of(app: FastAPI) -> State:
    state: State = app.state.llgbm
    return state


def services_of(app: FastAPI) -> Services:
    services = state_of(app).services
    assert services is not None
    return services


@asynccontextmanager
async def running(
    settings: Settings, load: LoadModels, *, seconds: float = 60
) -> AsyncIterator[tuple[FastAPI, httpx.AsyncClient]]:
    """A loaded application, with a client that calls it without a socket."""
    app = create_app(settings, load=load)
    async with app.router.lifespan_context(app):
        await until(lambda: state_of(app).services is not None or state_of(app).failure is not None, seconds)
        assert state_of(app).failure is None, state_of(app).failure
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=60) as client:
            yield app, client


async def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    """Wait for a condition of another task or thread."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        await asyncio.sleep(0.005)


class LiveServer:
    """An application behind uvicorn, in its own thread."""

    def __init__(self, app: FastAPI, server: uvicorn.Server, port: int) -> None:
        self.app, self.server = app, server
        self.url = f"http://127.0.0.1:{port}"
        self.port = port


@contextmanager
def live(settings: Settings, load: LoadModels) -> Iterator[LiveServer]:
    """Serve an application on a free port until the block ends."""
    app = create_app(settings, load=load)
    # with an explicit protocol, because asyncio disables Nagle's algorithm only for such sockets
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        server = uvicorn.Server(server_config(app, settings))
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])), daemon=True)
        thread.start()
        deadline = time.monotonic() + 240  # the machine may be busy
        while state_of(app).services is None:
            assert time.monotonic() < deadline, state_of(app).failure
            assert state_of(app).failure is None, state_of(app).failure
            time.sleep(0.01)
        try:
            yield LiveServer(app, server, port)
        finally:
            server.should_exit = True
            thread.join(60)
            assert not thread.is_alive()


def free_port() -> int:
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    """Wait for a condition of another thread or process."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.005)
