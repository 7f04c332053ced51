"""The state of one application: the loaded services, whether it drains, and the number of active requests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from service.adapters.catalogue import AdapterCatalogue
from service.adapters.service import AdapterService
from service.adapters.store import AdapterStore
from service.chat.service import ChatService
from service.engine.interface import DecodingEngine
from service.engine.torch_engine import Engine
from service.errors import ApiError
from service.jobs.service import JobService
from service.models.loading import Models
from service.observability.metrics import Metrics
from service.settings import Settings


@dataclass(frozen=True)
class Services:
    """The objects that the routes use; they exist after loading."""

    models: Models
    engine: Engine
    """The torch thread."""
    decoding: DecodingEngine
    """The engine that decodes: the same, or vLLM."""
    store: AdapterStore
    catalogue: AdapterCatalogue
    adapters: AdapterService
    chat: ChatService
    jobs: JobService
    started: int
    """Time when the models were loaded, in seconds since 1970."""


class State:
    """Shared by the lifespan, the middleware and the routes; used only in the event loop."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.settings, self.metrics = settings, metrics
        self.services: Services | None = None
        self.failure: str | None = None
        self.progress = "starting"
        self.draining = False
        self.active = 0
        """Number of active requests, without those for health and metrics."""
        self.on_failure: Callable[[], None] = lambda: None

    def require_services(self) -> Services:
        """The loaded services.

        Raises:
            ApiError: 503, the models are not loaded (yet), or the process is shutting down.
        """
        if self.draining:
            raise ApiError(503, "this process is shutting down; send the request again", code="draining", retry_after=1)
        if self.failure is not None:
            raise ApiError(503, "this process cannot serve; GET /readyz says why", code="failed")
        if self.services is None:
            raise ApiError(
                503,
                "the models are still loading; GET /readyz says when they are loaded",
                code="loading",
                retry_after=2,
            )
        return self.services


def _state(request: Request) -> State:
    state: State = request.app.state.llgbm
    return state


def _services(request: Request) -> Services:
    return _state(request).require_services()


AppState = Annotated[State, Depends(_state)]
Ready = Annotated[Services, Depends(_services)]
