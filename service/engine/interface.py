"""The interface between the engines and their callers: protocols, errors and limits.

Two engines implement `DecodingEngine`: `torch_engine` decodes in this process, `vllm_engine` uses vLLM servers. One
test suite covers both (tests/service/engine/test_decoding_engines.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from llgbm.decoding.decoder import DecodeRequest, Step
from service.errors import ApiError

_COUNTED_ANSWER = 1024
"""Tokens of an answer that count at most in the limit of a batch. Many clients allow the rest of the context and take a
few hundred."""


class EngineError(ApiError):
    """A row or a job could not be finished. Status 500 unless another one is given."""

    def __init__(
        self, message: str, status: int = 500, *, code: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(status, message, code=code, retry_after=retry_after)


class QueueFullError(EngineError):
    """The queue is full; a place is likely to be free after `retry_after` seconds."""

    retry_after: float

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(f"{message}; come back later", 429, code="queue_full", retry_after=retry_after)


class DeadlineError(EngineError):
    """The deadline of a row passed before its answer was complete."""

    def __init__(self, message: str) -> None:
        super().__init__(f"{message}; ask for fewer tokens, or again when there is less load", 504)


class UnstableError(EngineError):
    """The model's activations became infinite or NaN, for example because of an adapter with too large a scale."""

    def __init__(self, message: str) -> None:
        super().__init__(message, 422, code="adapter_unstable")


class GrammarError(EngineError):
    """The grammar of a JSON schema became too large to follow within an answer."""

    def __init__(self, message: str) -> None:
        super().__init__(f"the JSON schema cannot be enforced any further: {message}", 422)


class StoppedError(EngineError):
    """The engine is shutting down."""

    def __init__(self, message: str) -> None:
        super().__init__(f"{message}; send the request again", 503, code="draining", retry_after=1)


class UnavailableError(EngineError):
    """No server can decode at the moment; try again after `retry_after` seconds."""

    retry_after: float

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message, 503, code="engine_unavailable", retry_after=retry_after)


class UpstreamError(EngineError):
    """A decoding server failed, or sent an unexpected response."""

    def __init__(self, message: str) -> None:
        super().__init__(message, 502)


class RefusedError(EngineError):
    """A decoding server refused the request as invalid."""

    def __init__(self, message: str) -> None:
        super().__init__(message, 400)


Reason = Literal["cancelled", "stop"]
"""Why a row ends early. Metrics count the first reason given."""


class TokenStream:
    """The tokens of one row, as a stream.

    Iterate over it once. It ends after the step whose `finish_reason` is set, and raises an exception that the engine
    puts in place of a step. Call `cancel` to stop reading early.

    Args:
        queue: receives steps, or the exception that ended the row early; None if it was cancelled.
        cancel: ends the row; metrics count the given reason. Does nothing after the end.
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
        """End the row before its next token: the client left, or a stop string was found."""
        self._ended = True
        self._cancel(reason)


class DecodingEngine(Protocol):
    """Turns rows into tokens."""

    @property
    def needs_tensors(self) -> bool:
        """Whether rows need their adapter's tensors; if False, the adapter's id is enough."""
        ...

    @property
    def max_context(self) -> int | None:
        """The engine's limit of prompt and answer together, in tokens; None for no own limit."""
        ...

    @property
    def available(self) -> bool:
        """Whether decoding is possible now."""
        ...

    @property
    def problem(self) -> str | None:
        """A problem to show to the operator, or None."""
        ...

    @property
    def rows(self) -> int:
        """Number of waiting and running rows."""
        ...

    async def submit(
        self, rows: Sequence[DecodeRequest], adapter_ids: Sequence[str | None], *, timeout: float
    ) -> list[TokenStream]:
        """Queue all rows, or none if there are not enough places.

        Args:
            rows: prompt, adapter and sampling of each.
            adapter_ids: id of each row's adapter in the store; None for the plain base.
            timeout: seconds from now after which a row is ended with DeadlineError.

        Raises:
            QueueFullError: the waiting rows would exceed the limit.
            StoppedError: the engine is stopping.
            EngineError: a row cannot be decoded, and this is known before it starts.
        """
        ...

    def end_rows(self, error: EngineError) -> None:
        """End every row, waiting or running, with `error`."""
        ...

    async def stop(self) -> None:
        """End all rows with StoppedError and free all resources. May be called twice."""
        ...


class DecoderLike(Protocol):
    """The part of `llgbm.decoding.decoder.Decoder` that the engine uses."""

    def start(self, row: DecodeRequest) -> None:
        """Put a row in line for its prefill; any exception means that it was not."""
        ...

    def prefill(self) -> list[Step]:
        """Read a bounded number of prompt tokens; the first token of each row whose prompt is complete.

        Raises:
            PrefillError: names the rows that failed and have left.
        """
        ...

    def step(self) -> list[Step]:
        """The next token of every row with a complete prompt. A row whose `finish_reason` is set has left the batch."""
        ...

    def remove(self, row: DecodeRequest) -> bool:
        """Take a row out, whether its prompt is complete or not."""
        ...


@dataclass(frozen=True)
class EngineLimits:
    """Limits of the engine in this process; the fields are those of `Settings`."""

    max_batch: int
    batch_tokens: int
    max_queue: int
    max_jobs: int

    def admit(self, row: DecodeRequest, others: Collection[DecodeRequest]) -> bool:
        """Whether a row may be decoded together with the others. The first one always may."""
        tokens = sum(len(one.prompt) + min(one.params.max_tokens, _COUNTED_ANSWER) for one in [row, *others])
        return not others or (len(others) < self.max_batch and tokens <= self.batch_tokens)
