"""What the engine's callers and its decoder must know: its errors, its limits and the decoder's interface."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from llgbm.decoding import Row, Step


class EngineError(Exception):
    """A row or a job could not be finished."""


class QueueFullError(EngineError):
    """All waiting places are taken; `retry_after` seconds is when one is likely to be free."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class DeadlineError(EngineError):
    """The row's time was over before its answer was complete."""


class UnstableError(EngineError):
    """The model's numbers ran out of range, which an adapter with too large a scale can do."""


class StoppedError(EngineError):
    """The engine is shutting down."""


class DecoderLike(Protocol):
    """What the engine needs of `llgbm.decoding.Decoder`."""

    def add(self, rows: Sequence[Row]) -> list[Step]:
        """Take rows into the batch, all or none; the first token of each."""
        ...

    def step(self) -> list[Step]:
        """The next token of every row; a row whose `finish_reason` is set has left the batch."""
        ...

    def remove(self, row: Row) -> bool:
        """Take a row out of the batch."""
        ...


@dataclass(frozen=True)
class EngineLimits:
    """How much the engine takes on; the fields are those of `Settings`."""

    max_batch: int
    max_queue: int
    max_jobs: int
    prefill_tokens: int
