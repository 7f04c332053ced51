"""Jobs and their events as response models."""

from __future__ import annotations

import time

from service.jobs.records import Hyperparameters, JobEvent, JobRecord
from service.schemas.fine_tuning import (
    FineTuningJob,
    FineTuningJobEvent,
    JobError,
    JobHyperparameters,
    JobOutcome,
    Method,
    SupervisedMethod,
)


def job(record: JobRecord) -> FineTuningJob:
    """A job."""
    order, result = record.order, record.result
    chosen = _hyperparameters(order.hyperparameters)
    return FineTuningJob(
        id=record.id,
        created_at=int(record.created),
        finished_at=None if record.finished is None else int(record.finished),
        status=record.status,
        error=None if record.error is None else JobError(code=record.error_code or "error", message=record.error),
        model=order.model,
        fine_tuned_model=record.adapter,
        training_file=order.training_file,
        validation_file=order.validation_file,
        result_files=[] if result is None else [result.results_file],
        hyperparameters=chosen,
        method=Method(type="supervised", supervised=SupervisedMethod(hyperparameters=chosen)),
        seed=order.seed,
        estimated_finish=_estimate(record),
        metadata=None if order.metadata is None else dict(order.metadata),
        user_provided_suffix=order.suffix,
        start=order.start,
        step=record.step,
        total_steps=record.total,
        loss=record.loss,
        outcome=None if result is None else JobOutcome(**result.model_dump(exclude={"results_file"})),
    )


def event(item: JobEvent) -> FineTuningJobEvent:
    """An event."""
    return FineTuningJobEvent(
        id=item.id,
        object="fine_tuning.job.event",  # set explicitly: a stream leaves out defaults
        created_at=int(item.created),
        level=item.level,
        message=item.message,
        type="message" if item.data is None else "metrics",
        data=None if item.data is None else dict(item.data),
    )


def _hyperparameters(chosen: Hyperparameters) -> JobHyperparameters:
    return JobHyperparameters(**chosen.model_dump(exclude_none=True))


def _estimate(record: JobRecord) -> int | None:
    if record.status != "running" or record.started is None or not record.step:
        return None
    now = time.time()
    return int(now + (now - record.started) / record.step * (record.total - record.step))
