"""Models of the fine-tuning routes. Fields and meanings are OpenAI's, except where a description says so."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, StringConstraints

from service.schemas.common import Strict, example

Auto = Literal["auto"]
Suffix = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,47}$")]
_JOB_ID = "ftjob-0b8e6c1a5d2f4e7f9a3c8b1d6e5f4a2b"
_FILE_ID = "file-5a1f0c8e7d6b4f3a9c2d1e0f8a7b6c5d"
_AUTO: dict[str, Any] = {"n_epochs": "auto", "batch_size": "auto", "learning_rate_multiplier": "auto"}


class JobHyperparameters(Strict):
    """Settings of training. With `auto` the service chooses; held-out examples then choose the number of steps."""

    model_config = example(_AUTO)
    n_epochs: Annotated[int, Field(ge=1, le=50)] | Auto = Field("auto", description="Passes over the examples.")
    batch_size: Annotated[int, Field(ge=1, le=256)] | Auto = Field("auto", description="Examples in a step.")
    learning_rate_multiplier: Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)] | Auto = Field(
        "auto", description="Factor on the service's learning rate."
    )


class SupervisedMethod(Strict):
    """Supervised learning: from the answers of the examples."""

    model_config = example({"hyperparameters": _AUTO})
    hyperparameters: JobHyperparameters | None = None


class Method(Strict):
    """The method of training; only supervised learning is supported."""

    model_config = example({"type": "supervised", "supervised": {"hyperparameters": _AUTO}})
    type: Literal["supervised"]
    supervised: SupervisedMethod | None = None


class CreateJobRequest(Strict):
    """A job to start."""

    model_config = example(
        {"model": "prompt:Route the ticket to a team.", "training_file": _FILE_ID, "suffix": "tickets"},
        {
            "model": "french",
            "training_file": _FILE_ID,
            "seed": 1,
            "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 3}}},
        },
    )
    model: str = Field(
        min_length=1,
        description="The start of training: the base's id, an adapter's id or name, or `prompt:` and the "
        "description of a task. Part of the examples is then learned with the description in the context.",
    )
    training_file: str = Field(
        min_length=1, max_length=64, description="Id of an uploaded file with the purpose fine-tune."
    )
    validation_file: Annotated[str, StringConstraints(min_length=1, max_length=64)] | None = Field(
        None, description="File of examples that choose the number of steps, in place of a held-out quarter."
    )
    suffix: Suffix | None = Field(
        None, description="Start of the adapter's name; the last digits of the job's id follow."
    )
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = Field(
        None, description="The same job with the same seed gives the same adapter. Default 0."
    )
    method: Method | None = None
    hyperparameters: JobHyperparameters | None = Field(
        None, description="The older place of the hyperparameters, now in `method`."
    )
    metadata: (
        dict[Annotated[str, StringConstraints(max_length=64)], Annotated[str, StringConstraints(max_length=512)]] | None
    ) = Field(None, max_length=16, description="Kept with the job.")
    integrations: Annotated[list[Any], Field(max_length=0)] | None = Field(
        None, description="Must be empty; integrations are not supported."
    )


class JobError(BaseModel):
    """Why a job failed."""

    model_config = example({"code": "file_not_found", "message": "there is no file 'file-1'", "param": None})
    code: str
    message: str
    param: str | None = None


_SCORE: dict[str, Any] = {"rows": 8, "accuracy": 0.75, "log_likelihood": -0.21}


class HeldOutAccuracy(BaseModel):
    """Score on held-out examples."""

    model_config = example(_SCORE)
    rows: int = Field(
        description="Number of rows; an example counts twice if it is measured with and without the description."
    )
    accuracy: float = Field(description="Share of exact answers, 0 to 1.")
    log_likelihood: float = Field(
        description="Log-likelihood of the answers in nats, mean over tokens and then over rows."
    )


_OUTCOME: dict[str, Any] = {
    "steps": 15,
    "loss": 0.12,
    "seconds": 27.5,
    "start": {**_SCORE, "accuracy": 0.25, "log_likelihood": -1.4},
    "refined": _SCORE,
    "helped": True,
    "better": "lora-0f3a5d1c2b4e69788796a5b4",
    "note": "The adapter is ready; held-out accuracy 25 % before, 75 % after",
}


class JobOutcome(BaseModel):
    """The result of a job, and whether it helped."""

    model_config = example(_OUTCOME)
    steps: int = Field(description="Number of training steps of the adapter.")
    loss: float = Field(description="Training loss of the last step, nats.")
    seconds: float
    start: HeldOutAccuracy | None = Field(description="Score of the start; null without held-out examples.")
    refined: HeldOutAccuracy | None = Field(description="Score after training; null without held-out examples.")
    helped: bool | None = Field(description="Whether the result is better than the start; null if unknown.")
    better: str | None = Field(description="The better adapter: the result or the start; null for the plain base.")
    note: str = Field(description="The result in a sentence.")


_JOB: dict[str, Any] = {
    "id": _JOB_ID,
    "object": "fine_tuning.job",
    "created_at": 1763848800,
    "finished_at": 1763848832,
    "status": "succeeded",
    "error": None,
    "model": "prompt:Route the ticket to a team.",
    "fine_tuned_model": "lora-0f3a5d1c2b4e69788796a5b4",
    "training_file": _FILE_ID,
    "validation_file": None,
    "result_files": ["file-9d8c7b6a5f4e4d3c8b2a1f0e9d8c7b6a"],
    "hyperparameters": _AUTO,
    "method": {"type": "supervised", "supervised": {"hyperparameters": _AUTO}},
    "seed": 0,
    "trained_tokens": None,
    "estimated_finish": None,
    "organization_id": "llgbm",
    "integrations": [],
    "metadata": None,
    "user_provided_suffix": "tickets",
    "start": "lora-9a8b7c6d5e4f3a2b1c0d9e8f",
    "step": 47,
    "total_steps": 47,
    "loss": 0.12,
    "outcome": _OUTCOME,
}


class FineTuningJob(BaseModel):
    """A fine-tuning job, with its progress and result."""

    model_config = example(_JOB)
    id: str
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    created_at: int
    finished_at: int | None
    status: Literal["queued", "running", "succeeded", "failed", "cancelled"]
    error: JobError | None
    model: str
    fine_tuned_model: str | None = Field(description="Id of the refined adapter, for chat, download and compose.")
    training_file: str
    validation_file: str | None
    result_files: list[str] = Field(description="Ids of result files: a table with the loss of each step.")
    hyperparameters: JobHyperparameters
    method: Method
    seed: int
    trained_tokens: None = None
    estimated_finish: int | None = Field(description="Seconds since 1970, estimated from the steps so far.")
    organization_id: str = "llgbm"
    integrations: list[Any] = []
    metadata: dict[str, str] | None
    user_provided_suffix: str | None
    start: str | None = Field(description="Not OpenAI's: the adapter that training starts from; null for the base.")
    step: int = Field(description="Not OpenAI's: number of completed steps.")
    total_steps: int = Field(description="Not OpenAI's: maximum number of steps; 0 before the first.")
    loss: float | None = Field(description="Not OpenAI's: training loss of the last step, nats.")
    outcome: JobOutcome | None = Field(description="Not OpenAI's: the result.")


class JobList(BaseModel):
    """One page of jobs, the newest first."""

    model_config = example({"object": "list", "data": [_JOB], "has_more": False})
    object: Literal["list"] = "list"
    data: list[FineTuningJob]
    has_more: bool


_EVENT: dict[str, Any] = {
    "id": "ftevent-0000000000000017",
    "object": "fine_tuning.job.event",
    "created_at": 1763848812,
    "level": "info",
    "message": "Step 12/47: training loss=0.84",
    "type": "metrics",
    "data": {"step": 12, "total_steps": 47, "train_loss": 0.8412, "phase": "choose"},
}


class FineTuningJobEvent(BaseModel):
    """A training step, or a message."""

    model_config = example(_EVENT)
    id: str
    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: int
    level: Literal["info", "warn", "error"]
    message: str
    type: Literal["message", "metrics"]
    data: dict[str, Any] | None


class JobEventList(BaseModel):
    """One page of events, the newest first."""

    model_config = example({"object": "list", "data": [_EVENT], "has_more": False})
    object: Literal["list"] = "list"
    data: list[FineTuningJobEvent]
    has_more: bool
