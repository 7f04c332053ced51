"""What is known of a job, and of what it tells while it runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from llgbm.refining.settings import HeldOutScore

Status = Literal["queued", "running", "succeeded", "failed", "cancelled"]
ENDED: frozenset[Status] = frozenset({"succeeded", "failed", "cancelled"})


class Hyperparameters(BaseModel):
    """What may be chosen by hand; None leaves it to the library.

    Attributes:
        n_epochs: passes over the examples.
        batch_size: examples a step.
        learning_rate_multiplier: factor on the library's learning rate.
    """

    model_config = ConfigDict(frozen=True)
    n_epochs: int | None = None
    batch_size: int | None = None
    learning_rate_multiplier: float | None = None


class JobOrder(BaseModel):
    """What a job was asked to do. It never changes.

    Attributes:
        model: as the request has it.
        start: id of the adapter to start from; None for the plain base.
        description: of the task, which stands in the context of a part of the examples.
        training_file, validation_file: ids of files.
        suffix: start of the name that the adapter gets.
        name: the name that it gets, in place of one with a suffix.
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
    """What came of a job.

    Attributes:
        steps: number of steps of the adapter.
        loss: of the last step, nats.
        start, refined: scores on held-out examples; None where nothing was held out.
        helped: whether the refined adapter is better than the start; None where nothing was held out.
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
    """A job as it is now.

    Attributes:
        created, started, finished: seconds since 1970.
        attempts: how many workers began it.
        step, total: steps that are done, and that are needed at most.
        loss: of the last step, nats.
        adapter: id of the refined adapter.
        error_code, error: why it failed.
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
        """Whether nothing will change any more."""
        return self.status in ENDED


class JobEvent(BaseModel):
    """One line of a job's story.

    Attributes:
        seq: grows with time.
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
        """As clients know it."""
        return f"ftevent-{self.seq:016x}"
