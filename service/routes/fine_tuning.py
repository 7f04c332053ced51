"""OpenAI's fine-tuning jobs: adapters that learn from examples."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from service.errors import ApiError
from service.http.sse import EventStream, event
from service.jobs.records import Hyperparameters, JobEvent
from service.routes import job_views as views
from service.schemas.common import errors
from service.schemas.fine_tuning import (
    CreateJobRequest,
    FineTuningJob,
    JobEventList,
    JobHyperparameters,
    JobList,
)
from service.state import Ready

router = APIRouter(prefix="/v1/fine_tuning", tags=["fine-tuning"])


@router.post("/jobs", response_model=FineTuningJob, responses=errors(400, 504, 507), summary="Start a fine-tuning job")
async def create_job(body: CreateJobRequest, services: Ready) -> FineTuningJob:
    """Let an adapter learn from a file of examples.

    Jobs run one after another, in a process of low priority. The result is an adapter like all others.
    """
    job = await services.jobs.create(
        body.model,
        body.training_file,
        body.validation_file,
        suffix=body.suffix,
        seed=body.seed or 0,
        hyperparameters=_chosen(body),
        metadata=body.metadata,
    )
    return views.job(job)


def _chosen(body: CreateJobRequest) -> Hyperparameters:
    given = None if body.method is None or body.method.supervised is None else body.method.supervised.hyperparameters
    if given is not None and body.hyperparameters is not None:
        raise ApiError(400, "hyperparameters: give them here or in method, not in both", param="hyperparameters")
    wanted = given or body.hyperparameters or JobHyperparameters()
    chosen = {name: value for name, value in wanted.model_dump().items() if value != "auto"}
    return Hyperparameters(**chosen)


@router.get("/jobs", response_model=JobList, responses=errors(400, 404), summary="List jobs, the newest first")
async def list_jobs(
    request: Request,
    services: Ready,
    limit: Annotated[int, Query(ge=1, le=100, description="Jobs on a page.")] = 20,
    after: Annotated[str | None, Query(max_length=64, description="Id of the last job of the previous page.")] = None,
) -> JobList:
    """One page of jobs."""
    if any(name.startswith("metadata") for name in request.query_params):  # else all jobs would look like those
        raise ApiError(400, "metadata: jobs cannot be chosen by it; list all, and look at theirs", param="metadata")
    found, more = await services.jobs.page(limit, after)
    return JobList(data=[views.job(job) for job in found], has_more=more)


@router.get("/jobs/{job_id}", response_model=FineTuningJob, responses=errors(400, 404), summary="Show a job")
async def show_job(job_id: str, services: Ready) -> FineTuningJob:
    """Show a job with its progress."""
    return views.job(await services.jobs.record(job_id))


@router.post(
    "/jobs/{job_id}/cancel", response_model=FineTuningJob, responses=errors(400, 404, 507), summary="Cancel a job"
)
async def cancel_job(job_id: str, services: Ready) -> FineTuningJob:
    """End a queued or running job. A running job stops after its current step. It makes no adapter."""
    return views.job(await services.jobs.cancel(job_id))


@router.get(
    "/jobs/{job_id}/events",
    response_model=JobEventList,
    responses={
        200: {
            "description": "The events; with `stream`, server-sent events, the oldest first, and `[DONE]` at the end",
            "content": {"text/event-stream": {"schema": {"$ref": "#/components/schemas/FineTuningJobEvent"}}},
        },
        **errors(400, 404),
    },
    summary="Events of a job",
)
async def list_job_events(
    job_id: str,
    services: Ready,
    limit: Annotated[int, Query(ge=1, le=100, description="Events on a page.")] = 20,
    after: Annotated[str | None, Query(max_length=64, description="Id of the last event of the previous page.")] = None,
    stream: Annotated[bool, Query(description="Send the events as they come, until the job ends.")] = False,
) -> JobEventList | Response:
    """Messages, and the loss of each step, the newest first."""
    if stream:
        await services.jobs.events(job_id, 1, after)  # an error must come before the status is sent
        return EventStream(_sent(services.jobs.follow(job_id, after)), lambda: None, {})
    found, more = await services.jobs.events(job_id, limit, after)
    return JobEventList(data=[views.event(item) for item in found], has_more=more)


async def _sent(events: AsyncIterator[JobEvent]) -> AsyncIterator[str]:
    async for item in events:
        yield event(views.event(item))
