"""The torch engine: one thread runs torch; an asyncio front end gives it rows to decode and jobs to run.

Rows of different adapters, ranks and lengths share one batch; they join and leave between two tokens. Places in the
batch are given first in, first out; rows and their tokens have a limit. The decoder then reads a row's prompt, with a
bounded number of tokens in each turn between two tokens of the running rows; `llgbm.decoding.prefill.PromptQueue` says
whose turn it is. The queue is bounded (`QueueFullError` says when to retry), every row has a deadline, and a cancelled
row ends within one token or turn. The engine knows neither HTTP nor the adapter store: a row has its tensors, and the
caller keeps them alive.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import structlog

from llgbm.decoding.decoder import DecodeRequest, PrefillError, Step
from service.engine.interface import (
    DeadlineError,
    DecoderLike,
    EngineError,
    EngineLimits,
    GrammarError,
    QueueFullError,
    Reason,
    StoppedError,
    TokenStream,
    UnstableError,
)
from service.observability.metrics import Metrics

_T = TypeVar("_T")
_log = structlog.get_logger("service.engine")


@dataclass(eq=False)
class _Entry:
    """A row in the engine. Both threads read it; the front end writes only `cancelled`."""

    row: DecodeRequest
    adapter_id: str | None
    deadline: float
    submitted: float
    queue: asyncio.Queue[Step | Exception | None]
    cancelled: Reason | None = None
    last_token: float | None = None


@dataclass(eq=False)
class _Job:
    run: Callable[[], Any]
    future: Future[Any] = field(default_factory=Future)


class Engine:
    """Owns the torch thread.

    Order of calls: `start` inside the event loop, `run` a job that loads the models, `attach` a decoder, then `submit`
    and `run` until `stop`. Without a decoder it only runs jobs.

    Args:
        on_death: called in the torch thread if it ends with a fatal error.
    """

    needs_tensors = True
    max_context = None  # the decoder's limit, which `Models` has
    available, problem = True, None  # if the torch thread ends, the process stops

    def __init__(
        self, limits: EngineLimits, metrics: Metrics, *, on_death: Callable[[], object] = lambda: None
    ) -> None:
        self._limits, self._metrics, self._on_death = limits, metrics, on_death
        self._condition = threading.Condition()
        self._jobs: deque[_Job] = deque()
        self._waiting: deque[_Entry] = deque()
        # both are changed only by the torch thread, with the condition held
        self._joining: dict[DecodeRequest, _Entry] = {}  # have a place in the batch, but no token yet
        self._running: dict[DecodeRequest, _Entry] = {}
        self._outbox: list[tuple[_Entry, Step | EngineError | None]] = []
        self._new_decoder: Callable[[], DecoderLike] | None = None
        self._decoder: DecoderLike | None = None
        self._stopping: EngineError | None = None
        self._evicting: EngineError | None = None
        self._row_seconds = 1.0  # a moving average, for Retry-After
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._main, name="llgbm-torch", daemon=True)

    # the asyncio front end

    def start(self) -> None:
        """Start the thread. Its results go to the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def attach(self, new_decoder: Callable[[], DecoderLike]) -> None:
        """Decode with a decoder from `new_decoder`, which runs in the torch thread, and again after a failed step."""
        with self._condition:
            self._new_decoder = new_decoder
            self._condition.notify()

    async def run(self, job: Callable[[], _T]) -> _T:
        """Run `job` in the torch thread, between two tokens of the batch.

        Raises:
            QueueFullError: too many jobs wait.
            StoppedError: the engine is stopping.
            Exception: any exception of the job.
        """
        with self._condition:
            self._refuse_if_stopping()
            if len(self._jobs) >= self._limits.max_jobs:
                self._metrics.rejected.labels("jobs").inc()
                raise QueueFullError(f"{len(self._jobs)} adapters wait to be made already", self._retry_after())
            entry = _Job(job)
            self._jobs.append(entry)
            self._condition.notify()
        result: _T = await asyncio.wrap_future(entry.future)
        return result

    async def submit(
        self, rows: Sequence[DecodeRequest], adapter_ids: Sequence[str | None], *, timeout: float
    ) -> list[TokenStream]:
        """See `service.engine.interface.DecodingEngine`; metrics show the adapters' ids."""
        now = time.monotonic()
        entries = [
            _Entry(row, name, now + timeout, now, asyncio.Queue()) for row, name in zip(rows, adapter_ids, strict=True)
        ]
        with self._condition:
            self._refuse_if_stopping()
            free = self._limits.max_batch - len(self._running) - len(self._joining)
            if len(self._waiting) + len(entries) > self._limits.max_queue + free:
                self._metrics.rejected.labels("queue").inc()
                raise QueueFullError(f"{len(self._waiting)} rows wait already", self._retry_after())
            self._waiting.extend(entries)
            self._report()
            self._condition.notify()
        return [TokenStream(entry.queue, partial(self._cancel, entry)) for entry in entries]

    def end_rows(self, error: EngineError) -> None:
        """End every row, waiting or running, with `error`, before its next token."""
        with self._condition:
            self._evicting = error
            self._condition.notify()

    async def stop(self, *, patience: float | None = None) -> None:
        """End all rows and jobs with StoppedError and join the thread.

        Args:
            patience: seconds to wait for a running job; None waits for its end.
        """
        with self._condition:
            self._stopping = StoppedError("the service is shutting down")
            self._condition.notify()
        if self._thread.ident is not None:
            await asyncio.to_thread(self._thread.join, patience)

    @property
    def rows(self) -> int:
        """Number of waiting and running rows."""
        with self._condition:
            return len(self._waiting) + len(self._joining) + len(self._running)

    def _refuse_if_stopping(self) -> None:
        if self._stopping is not None:
            raise self._stopping

    def _retry_after(self) -> float:
        waves = 1 + len(self._waiting) / self._limits.max_batch
        return min(60.0, max(1.0, waves * self._row_seconds))

    def _cancel(self, entry: _Entry, reason: Reason) -> None:
        entry.cancelled = entry.cancelled or reason
        with self._condition:
            self._condition.notify()

    # the torch thread

    def _main(self) -> None:
        try:
            while True:
                with self._condition:
                    self._condition.wait_for(self._has_work)
                    if self._stopping is not None:
                        break
                    job = self._jobs.popleft() if self._jobs else None
                if job is not None:
                    self._run_job(job)
                if self._decoder is None and self._new_decoder is not None:
                    self._decoder = self._new_decoder()
                if self._decoder is not None:
                    self._leave(self._decoder)
                    self._join(self._decoder)
                    self._prefill(self._decoder)
                    self._flush()  # deliver first tokens before the next step
                    self._step(self._decoder)
                self._flush()
        except BaseException as error:
            _log.exception("engine_died")
            self._stopping = EngineError(f"the engine stopped on {type(error).__name__}")
            self._on_death()
        finally:
            self._abandon_all()

    def _has_work(self) -> bool:
        return bool(
            self._stopping
            or self._evicting
            or self._jobs
            or (self._new_decoder is not None and (self._waiting or self._joining or self._running))
        )

    def _run_job(self, job: _Job) -> None:
        if not job.future.set_running_or_notify_cancel():
            return
        try:
            result = job.run()
        except Exception as error:
            job.future.set_exception(error)
        else:
            job.future.set_result(result)

    def _leave(self, decoder: DecoderLike) -> None:
        """Remove rows that are cancelled, past their deadline, or ended by `end_rows`."""
        now = time.monotonic()
        with self._condition:
            evicting, self._evicting = self._evicting, None
            waiting = list(self._waiting)
        gone = set()
        for entry in [*waiting, *self._joining.values(), *self._running.values()]:
            error: EngineError | None = None
            if entry.cancelled is not None:
                reason: str = entry.cancelled
            elif evicting is not None:
                reason, error = "stopped", evicting
            elif now >= entry.deadline:
                reason = "deadline"
                error = DeadlineError(f"the answer was not complete after {entry.deadline - entry.submitted:g} seconds")
            else:
                continue
            gone.add(entry)
            if entry.row in self._joining or entry.row in self._running:
                decoder.remove(entry.row)
            self._end(entry, reason, error)
        if gone:
            with self._condition:
                self._waiting = deque(entry for entry in self._waiting if entry not in gone)
                for entry in gone:
                    self._joining.pop(entry.row, None)
                    self._running.pop(entry.row, None)
                self._report()

    def _join(self, decoder: DecoderLike) -> None:
        """Give waiting rows the free places of the batch."""
        joining = []
        with self._condition:
            while self._waiting and self._limits.admit(self._waiting[0].row, [*self._joining, *self._running]):
                entry = self._waiting.popleft()
                self._joining[entry.row] = entry
                joining.append(entry)
        for entry in joining:
            try:
                decoder.start(entry.row)
            except Exception as error:
                self._end_joining([entry], error)
        if joining:
            with self._condition:
                self._report()

    def _prefill(self, decoder: DecoderLike) -> None:
        """One turn of prompts, which is all that the running rows wait for."""
        if not self._joining:
            return
        steps: Sequence[Step] = []
        try:
            steps = decoder.prefill()
        except PrefillError as error:
            self._end_joining([self._joining[row] for row in error.rows], error.cause)
            steps = error.steps
        with self._condition:
            for step in steps:
                self._running[step.row] = self._joining.pop(step.row)
        for step in steps:
            self._metrics.prompt_tokens.inc(len(step.row.prompt))
            self._metrics.known_tokens.inc(step.row.known_tokens or 0)
        self._hand_out(steps)
        with self._condition:
            self._report()

    def _end_joining(self, entries: Sequence[_Entry], error: Exception) -> None:
        names = [entry.adapter_id for entry in entries]
        _log.error("rows_refused", adapter_ids=names, exc_info=error)
        with self._condition:
            for entry in entries:
                del self._joining[entry.row]
        for entry in entries:
            self._end(entry, "failed", EngineError(f"the row could not start: {type(error).__name__}"))

    def _step(self, decoder: DecoderLike) -> None:
        if not self._running:
            return
        try:
            steps = decoder.step()
        except Exception as error:
            _log.exception("step_failed", rows=len(self._running))
            failure = EngineError(f"decoding failed: {type(error).__name__}")
            for entry in self._running.values():
                self._end(entry, "failed", failure)
            with self._condition:
                self._running.clear()
                # its state may be wrong: the next rows get a new decoder, first those that had no token yet
                self._waiting.extendleft(reversed(self._joining.values()))
                self._joining.clear()
            self._decoder = None
            steps = []
        before = len(self._running)
        self._hand_out(steps)
        if len(self._running) < before or not steps:
            with self._condition:
                self._report()

    def _hand_out(self, steps: Sequence[Step]) -> None:
        now = time.monotonic()
        for step in steps:
            entry = self._running[step.row]
            if step.finish_reason is not None:
                with self._condition:
                    del self._running[step.row]
                self._row_seconds += 0.1 * (now - entry.submitted - self._row_seconds)
            if step.finish_reason == "error":
                if step.row.problem is not None:
                    self._end(entry, "failed", GrammarError(step.row.problem))
                    continue
                problem = "the model's numbers ran out of range; the adapter is too large, try a smaller scale"
                self._end(entry, "unstable", UnstableError(problem))
                continue
            self._outbox.append((entry, step))
            self._metrics.completion_tokens.inc()
            if entry.last_token is None:
                self._metrics.first_token.observe(now - entry.submitted)
            else:
                self._metrics.next_token.observe(now - entry.last_token)
            entry.last_token = now
            if step.finish_reason is not None:
                self._metrics.finished.labels(step.finish_reason).inc()

    def _end(self, entry: _Entry, reason: str, error: EngineError | None) -> None:
        self._metrics.finished.labels(reason).inc()
        self._outbox.append((entry, error))

    def _flush(self) -> None:
        """Pass all results to the event loop in one call."""
        outbox, self._outbox = self._outbox, []
        if outbox and self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, so nobody waits for the results
                self._loop.call_soon_threadsafe(_deliver, outbox)

    def _abandon_all(self) -> None:
        with self._condition:
            error = self._stopping or StoppedError("the service is shutting down")
            entries = [*self._waiting, *self._joining.values(), *self._running.values()]
            jobs = list(self._jobs)
            self._waiting.clear()
            self._joining.clear()
            self._running.clear()
            self._jobs.clear()
            self._report()
        for entry in entries:
            self._end(entry, "stopped", error)
        for job in jobs:
            if job.future.set_running_or_notify_cancel():
                job.future.set_exception(error)
        self._flush()

    def _report(self) -> None:
        self._metrics.on_load(
            [entry.adapter_id for entry in self._waiting],
            [entry.adapter_id for entry in [*self._joining.values(), *self._running.values()]],
            self._limits.max_batch,
        )


def _deliver(outbox: Sequence[tuple[_Entry, Step | EngineError | None]]) -> None:
    for entry, item in outbox:
        entry.queue.put_nowait(item)
