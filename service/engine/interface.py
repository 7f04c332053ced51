"""What those who decode and those who ask for it must know of each other: interfaces, errors and limits.

Two engines implement `DecodingEngine`: `torch_engine` decodes in this process, `vllm_engine` has vLLM do it.
One suite of tests holds both to it (tests/service/engine/test_decoding_engines.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from llgbm.decoding.decoder import DecodeRequest, Step
from service.errors import ApiError


class EngineError(ApiError):
    """A row or a job could not be finished; without a status of its own, a fault of this service."""

    def __init__(
        self, message: str, status: int = 500, *, code: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(status, message, code=code, retry_after=retry_after)


class QueueFullError(EngineError):
    """All waiting places are taken; `retry_after` seconds is when one is likely to be free."""

    retry_after: float

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(f"{message}; come back later", 429, code="queue_full", retry_after=retry_after)


class DeadlineError(EngineError):
    """The row's time was over before its answer was complete."""

    def __init__(self, message: str) -> None:
        super().__init__(f"{message}; ask for fewer tokens, or again when there is less load", 504)


class UnstableError(EngineError):
    """The model's numbers ran out of range, which an adapter with too large a scale can do."""

    def __init__(self, message: str) -> None:
        super().__init__(message, 422, code="adapter_unstable")


class GrammarError(EngineError):
    """The JSON schema of an answer has too many open possibilities at some place of it."""

    def __init__(self, message: str) -> None:
        super().__init__(f"the answer cannot be held to its JSON schema any further: {message}", 422)


class StoppedError(EngineError):
    """The engine is shutting down."""

    def __init__(self, message: str) -> None:
        super().__init__(f"{message}; send the request again", 503, code="draining", retry_after=1)


class UnavailableError(EngineError):
    """Nothing that could decode answers at the moment; `retry_after` seconds is when to try again."""

    retry_after: float

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message, 503, code="engine_unavailable", retry_after=retry_after)


class UpstreamError(EngineError):
    """A server that decodes for this one failed, or answered what was not expected."""

    def __init__(self, message: str) -> None:
        super().__init__(message, 502)


class RefusedError(EngineError):
    """A server that decodes for this one says that the request cannot be served as it is."""

    def __init__(self, message: str) -> None:
        super().__init__(message, 400)


Reason = Literal["cancelled", "stop"]
"""Why a row is freed early; the first reason given is the one that is counted."""


class TokenStream:
    """The tokens of one row as they come.

    Iterate over it once. It ends after the step whose `finish_reason` is set, and raises what the engine put in place
    of a step. Whoever drops it early calls `cancel`.

    Args:
        queue: where the engine puts steps, or what ended the row before its last step; None if it was cancelled.
        cancel: frees the row, for the reason that metrics are to count. Harmless when it has ended.
    """

    def __init__(self, queue: asyncio.Queue[Step | Exception | None], cancel: Callable[[Reason], None]) -> None:
        self._queue, self._cancel, self._ended = queue, cancel, False

    async def __aiter__(self) -> AsyncIterator[Step]:
        while not self._ended:
            item = await self._queue.get()
            if isinstance(item, Exception):
                self._ended = True
                raise item
            if item is None:
                self._ended = True
                return
            self._ended = item.finish_reason is not None
            yield item

    def cancel(self, reason: Reason = "cancelled") -> None:
        """Free the row before its next token: nobody wants the rest, or a stop string has ended it."""
        self._ended = True
        self._cancel(reason)


class DecodingEngine(Protocol):
    """Turns rows into tokens."""

    @property
    def needs_tensors(self) -> bool:
        """Whether rows must bring their adapter's tensors; without, the adapter's id is enough."""
        ...

    @property
    def max_context(self) -> int | None:
        """Tokens of a prompt and its answer together that the engine takes; None if it sets no limit of its own."""
        ...

    @property
    def available(self) -> bool:
        """Whether there is anything that could decode."""
        ...

    @property
    def problem(self) -> str | None:
        """What is not as it should be, for whoever operates the service."""
        ...

    @property
    def rows(self) -> int:
        """Rows that wait or run."""
        ...

    async def submit(
        self, rows: Sequence[DecodeRequest], adapter_ids: Sequence[str | None], *, timeout: float
    ) -> list[TokenStream]:
        """Queue rows; all of them or, when there are not enough places, none.

        Args:
            rows: prompt, adapter and sampling of each.
            adapter_ids: which adapter of the store each is for; None for the plain base.
            timeout: seconds from now after which a row is ended with DeadlineError.

        Raises:
            QueueFullError: the waiting rows would exceed the limit.
            StoppedError: the engine is stopping.
            EngineError: a row cannot be decoded, and that is known already.
        """
        ...

    def end_rows(self, error: EngineError) -> None:
        """End every row, waiting or running, with `error`."""
        ...

    async def stop(self) -> None:
        """End all rows with StoppedError and free what the engine holds. May be called twice."""
        ...


class DecoderLike(Protocol):
    """What the engine needs of `llgbm.decoding.decoder.Decoder`."""

    def add(self, rows: Sequence[DecodeRequest]) -> list[Step]:
        """Take rows into the batch, all or none; the first token of each."""
        ...

    def step(self) -> list[Step]:
        """The next token of every row; a row whose `finish_reason` is set has left the batch."""
        ...

    def remove(self, row: DecodeRequest) -> bool:
        """Take a row out of the batch."""
        ...


@dataclass(frozen=True)
class EngineLimits:
    """How much the engine of this process takes on; the fields are those of `Settings`."""

    max_batch: int
    max_queue: int
    max_jobs: int
    prefill_tokens: int
