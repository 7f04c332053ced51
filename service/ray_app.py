"""The service on Ray Serve: replicas of the application of `service.app`, as many as the requests under way ask for.

    serve run service.ray_app:app

A replica takes requests when its models are loaded, and is replaced when its engine has died. One that is to go gets
no new requests, finishes those it has, and drains as `python -m service` does. Replicas agree through LLGBM_REDIS_URL
and a store that all of them reach (LLGBM_STORE_DIR or LLGBM_STORE_URL).

The settings are those of the process that runs `serve run`: they go to the replicas as they are.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from ray import serve

from service.app import create_app
from service.models.loading import load_models_for_good
from service.settings import Settings
from service.state import State

_DEREGISTER_SECONDS = 30.0
"""A replica behind HAProxy stays reachable so long after it was told to go; Serve's own default."""


class Replica:
    """One replica, in a process of its own."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._state: State | None = None
        # llgbm reads it from there
        os.environ["LLGBM_CACHE_DIR"] = str(settings.cache_dir)

    def __serve_build_asgi_app__(self) -> FastAPI:
        app = create_app(self._settings, load=load_models_for_good)
        state: State = app.state.llgbm
        self._state = state
        inner = app.router.lifespan_context

        @asynccontextmanager
        async def until_loaded(app: FastAPI) -> AsyncIterator[None]:
            async with inner(app):
                while state.services is None:
                    if state.failure is not None:
                        raise RuntimeError(f"the models cannot be loaded: {state.failure}")
                    await asyncio.sleep(0.05)
                yield

        app.router.lifespan_context = until_loaded
        return app

    def check_health(self) -> None:
        """Raise if this replica cannot serve any more; Serve then replaces it."""
        if self._state is not None and self._state.failure is not None:
            raise RuntimeError(self._state.failure)


def application(settings: Settings) -> Any:
    """The deployment with its limits."""
    deployment: Any = serve.deployment(serve.ingress()(Replica))
    return deployment.options(
        name="llgbm",
        ray_actor_options={"num_cpus": settings.ray_cpus},
        autoscaling_config={
            "min_replicas": settings.ray_min_replicas,
            "max_replicas": max(settings.ray_min_replicas, settings.ray_max_replicas),
            "target_ongoing_requests": settings.ray_target_requests,
        },
        # what the process itself takes on; more is answered 429 there
        max_ongoing_requests=settings.max_batch + settings.max_queue + settings.max_jobs,
        graceful_shutdown_wait_loop_s=1.0,
        graceful_shutdown_timeout_s=_DEREGISTER_SECONDS + settings.drain_seconds,
    ).bind(settings)


app = application(Settings())
