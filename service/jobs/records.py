"""The records of jobs and of their events."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from llgbm.refining.settings import HeldOutScore

Status = Literal["queued", "running", "succeeded", "failed", "cancelled"]
ENDED: frozenset[Status] = frozenset({"succeeded", "failed", "cancelled"})


class Hyperparameters(BaseModel):
    """Settings of a job; None for the library's choice.

    Attributes:
        n_epochs: passes over the examples.
        batch_size: examples per step.
        learning_rate_multiplier: factor on the library's learning rate.
    """

    model_config = ConfigDict(frozen=True)
    n_epochs: int | None = None
    batch_size: int | None = None
    learning_rate_multiplier: float | None = None


class JobOrder(BaseModel):
    """The request for a job. It never changes.

    Attributes:
        model: the model of the request.
        start: id of the adapter to start from; None for the plain base.
        description: of the task; a part of the examples has it in the context.
        training_file, validation_file: ids of files.
        suffix: start of the adapter's name.
        name: the adapter's whole name, in place of a suffix.
    """

    model_config = ConfigDict(frozen=True)
    model: str
    start: str | None
    description: str | None
    training_file: str
    validation_file: str | None = None
    suffix: str | None = None
    name: str | None = None
    seed: int = 0
    hyperparameters: Hyperparameters = Hyperparameters()
    metadata: Mapping[str, str] | None = None


class JobResult(BaseModel):
    """The result of a job.

    Attributes:
        steps: number of steps of the adapter.
        loss: of the last step, nats.
        start, refined: scores on held-out examples; None if nothing was held out.
        helped: whether the refined adapter is better than the start; None if nothing was held out.
        better: id of the adapter to use, None for the plain base.
        note: whether it helped, in a sentence.
        seconds: of the training.
        results_file: id of the file with the loss of each step.
    """

    model_config = ConfigDict(frozen=True)
    steps: int
    loss: float
    start: HeldOutScore | None
    refined: HeldOutScore | None
    helped: bool | None
    better: str | None
    note: str
    seconds: float
    results_file: str


class JobRecord(BaseModel):
    """The current state of a job.

    Attributes:
        created, started, finished: seconds since 1970.
        attempts: number of workers that have started it.
        step, total: number of completed steps, and maximum number of steps.
        loss: of the last step, nats.
        adapter: id of the refined adapter.
        error_code, error: the reason of a failure.
    """

    model_config = ConfigDict(frozen=True)
    id: str
    created: float
    status: Status
    order: JobOrder
    attempts: int
    started: float | None
    finished: float | None
    step: int
    total: int
    loss: float | None
    adapter: str | None
    result: JobResult | None
    error_code: str | None
    error: str | None

    @property
    def ended(self) -> bool:
        """Whether the job has ended; it then never changes."""
        return self.status in ENDED


class JobEvent(BaseModel):
    """An event of a job.

    Attributes:
        seq: increases with time.
        data: step, total and loss of a step; None for a message.
    """

    model_config = ConfigDict(frozen=True)
    seq: int
    created: float
    level: Literal["info", "warn", "error"]
    message: str
    data: Mapping[str, Any] | None

    @property
    def id(self) -> str:
        """The id that clients see."""
        return f"ftevent-{self.seq:016x}"
