"""The service on Ray Serve: replicas of the application of `service.app`, scaled with the number of active requests.

    serve run service.ray_app:app

A replica gets requests after its models are loaded, and is replaced if its engine dies. A replica that is scaled down
gets no new requests, finishes its active ones, and drains as `python -m service` does. Replicas share Redis
(LLGBM_REDIS_URL) and a store (LLGBM_STORE_DIR or LLGBM_STORE_URL).

All replicas have the settings of the process that runs `serve run`.
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
"""Seconds for which HAProxy may still send requests to a replica that is being stopped; Serve's default."""


class Replica:
    """One replica, in its own process."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._state: State | None = None
        # llgbm reads it from the environment
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
        """Raise if this replica cannot serve; Ray Serve then replaces it."""
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
        # the capacity of the process, which answers 429 to more requests
        max_ongoing_requests=settings.max_batch + settings.max_queue + settings.max_jobs,
        graceful_shutdown_wait_loop_s=1.0,
        graceful_shutdown_timeout_s=_DEREGISTER_SECONDS + settings.drain_seconds,
    ).bind(settings)


app = application(Settings())
