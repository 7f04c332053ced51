"""Routes for operations: liveness, readiness, metrics."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Response

from service.observability.metrics import CONTENT_TYPE
from service.schemas import ops
from service.schemas.common import errors
from service.state import AppState, State

router = APIRouter(tags=["operations"])


@router.get("/livez", response_model=ops.Live, summary="Liveness")
async def livez() -> ops.Live:
    """Whether the process answers. It uses neither the models, nor Redis, nor the disk."""
    return ops.Live()


@router.get(
    "/readyz",
    response_model=ops.Ready,
    responses={503: {"model": ops.Ready, "description": "Not ready"}},
    summary="Readiness",
)
async def readyz(state: AppState, response: Response) -> ops.Ready:
    """Whether requests are served: 200 from the end of loading until the service shuts down.

    Without Redis, or without some of the vLLM servers, the status is degraded and requests are served.
    """
    answer = await _readiness(state)
    if answer.status not in ("ready", "degraded"):
        response.status_code = 503
    return answer


async def _readiness(state: State) -> ops.Ready:
    services = state.services
    known: dict[str, str | None] = {"base": None, "base_storage": None, "generator": None}
    if services is not None:
        known = {
            "base": services.models.base.spec.base_id,
            "base_storage": services.models.base_storage,
            "generator": services.models.generator_digest[:12],
        }
    if state.draining:
        return ops.Ready(status="draining", reason="shutting down", embedding_cache="unknown", **known)
    if state.failure is not None:
        return ops.Ready(status="failed", reason=state.failure, embedding_cache="unknown", **known)
    if services is None:
        return ops.Ready(status="loading", reason=state.progress, embedding_cache="unknown", **known)
    cache = await asyncio.to_thread(services.models.cache.current_problem)
    reasons = [] if cache is None else [f"text embeddings are not kept: the cache is {cache}"]
    if services.decoding.problem is not None:
        reasons.append(services.decoding.problem)
    return ops.Ready(
        status="unavailable" if not services.decoding.available else "degraded" if reasons else "ready",
        reason="; ".join(reasons) or None,
        embedding_cache="ok" if cache is None else "degraded",
        **known,
    )


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"description": "Prometheus' text format", "content": {"text/plain": {}}}, **errors()},
    summary="Prometheus metrics",
)
async def metrics(state: AppState) -> Response:
    """The metrics in the text format of Prometheus."""
    return Response(state.metrics.render(), media_type=CONTENT_TYPE)
