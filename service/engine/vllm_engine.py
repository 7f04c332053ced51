"""The vLLM engine: sends rows to vLLM servers, and loads their adapters there first.

A row is one request to one server. If the server fails before the row's first token, another server gets the row. If
the server has lost the adapter, for example after a restart, the adapter is loaded again, once. Closing the request
ends the row on the server. vLLM does the queueing and batching; this engine only limits the number of rows it sends.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import structlog

from llgbm.decoding.decoder import DecodeRequest, Step
from service.engine.interface import (
    DeadlineError,
    EngineError,
    QueueFullError,
    Reason,
    StoppedError,
    TokenStream,
    UpstreamError,
)
from service.engine.vllm_adapters import AdapterSlots
from service.engine.vllm_fleet import Fleet, Member
from service.engine.vllm_server import ServerDownError, UnknownModelError, VLLMServer
from service.observability.metrics import Metrics
from service.settings import Settings

_log = structlog.get_logger("service.vllm")


class _Call:
    """A row that is sent to a server."""

    def __init__(self, row: DecodeRequest, adapter_id: str | None, timeout: float) -> None:
        self.row, self.adapter_id, self.timeout = row, adapter_id, timeout
        self.submitted = time.monotonic()
        self.queue: asyncio.Queue[Step | Exception | None] = asyncio.Queue()
        self.taken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when a server has accepted the row; else has the exception."""
        self.last_token: float | None = None
        self.complete = False
        self.ending: EngineError | None = None
        self.task: asyncio.Task[None] | None = None
        self.cancelled: Reason | None = None

    def cancel(self, reason: Reason = "cancelled") -> None:
        self.cancelled = self.cancelled or reason
        if self.task is not None and not self.complete:
            self.task.cancel()


class VLLMEngine:
    """Implements `service.engine.interface.DecodingEngine`.

    Args:
        verify: checks an adapter's files before a server reads them, and raises if they are damaged.
    """

    needs_tensors = False

    def __init__(self, settings: Settings, metrics: Metrics, verify: Callable[[str], Awaitable[None]]) -> None:
        self._settings, self._metrics, self._verify = settings, metrics, verify
        self._fleet = Fleet(
            [self._member(url) for url in settings.vllm_url],
            max_loras=settings.vllm_max_loras,
            check_seconds=settings.vllm_check_seconds,
        )
        self._calls: set[_Call] = set()
        self._stopping: StoppedError | None = None
        self._row_seconds = 1.0  # a moving average, for Retry-After

    def _member(self, url: str) -> Member:
        key = self._settings.vllm_api_key
        server = VLLMServer(url, None if key is None else key.get_secret_value())
        load, unload = partial(self._load, server), partial(self._unload, server)
        return Member(server, AdapterSlots(self._settings.vllm_max_cpu_loras, load, unload))

    async def _load(self, server: VLLMServer, identity: str) -> None:
        await self._verify(identity)
        if self._settings.vllm_adapters == "load":
            await server.load(identity, str(self._folder / identity))

    async def _unload(self, server: VLLMServer, identity: str) -> None:
        if self._settings.vllm_adapters == "load":
            await server.unload(identity)

    @property
    def _folder(self) -> Path:
        """The path of the store on the servers."""
        return self._settings.vllm_store_dir or self._settings.store_dir.resolve()

    async def start(self) -> None:
        """Check every server once, then regularly in the background."""
        await self._fleet.start()

    @property
    def max_context(self) -> int | None:
        """The smallest context of all servers; None if it is unknown."""
        return min((m.max_context for m in self._fleet.members if m.max_context is not None), default=None)

    @property
    def available(self) -> bool:
        """Whether a server answers."""
        return self._fleet.healthy > 0

    @property
    def problem(self) -> str | None:
        """How many servers do not answer."""
        return self._fleet.problem

    @property
    def rows(self) -> int:
        """Number of waiting and running rows."""
        return len(self._calls)

    async def submit(
        self, rows: Sequence[DecodeRequest], adapter_ids: Sequence[str | None], *, timeout: float
    ) -> list[TokenStream]:
        """See `service.engine.interface.DecodingEngine`. Returns when servers have accepted all rows."""
        if self._stopping is not None:
            raise self._stopping
        limit = self._settings.max_queue + self._settings.max_batch * len(self._fleet.members)
        if len(self._calls) + len(rows) > limit:
            self._metrics.rejected.labels("queue").inc()
            raise QueueFullError(f"{len(self._calls)} rows are with the vLLM servers", max(1.0, self._row_seconds))
        calls = [_Call(row, name, timeout) for row, name in zip(rows, adapter_ids, strict=True)]
        for call in calls:
            self._calls.add(call)
            call.task = asyncio.create_task(self._run(call))
            call.task.add_done_callback(partial(self._ended, call))
        try:
            await asyncio.gather(*(call.taken for call in calls))
        except BaseException:
            for call in calls:
                call.cancel()
            raise
        return [TokenStream(call.queue, call.cancel) for call in calls]

    def end_rows(self, error: EngineError) -> None:
        """End every row with `error`."""
        for call in self._calls:
            call.ending = error
            call.cancel()

    async def stop(self) -> None:
        """End all rows with StoppedError and close all connections."""
        self._stopping = StoppedError("the service is shutting down")
        self.end_rows(self._stopping)
        await asyncio.gather(*(call.task for call in self._calls if call.task is not None), return_exceptions=True)
        await self._fleet.stop()

    # one row

    async def _run(self, call: _Call) -> None:
        self._report()
        try:
            async with asyncio.timeout(call.timeout):
                await self._decode(call)
        except TimeoutError as error:
            raise DeadlineError(f"the answer was not complete after {call.timeout:g} seconds") from error

    def _ended(self, call: _Call, task: asyncio.Task[None]) -> None:
        # a callback, because a task that is cancelled before its start runs no code of its own
        failure = call.ending if task.cancelled() else task.exception()
        reason: str = (call.cancelled or "cancelled") if failure is None else "failed"
        if isinstance(failure, DeadlineError):
            reason = "deadline"
        elif task.cancelled() and failure is not None:
            reason = "stopped"
        self._calls.discard(call)
        self._report()
        self._metrics.finished.labels(call.row.finish_reason or reason).inc()
        if call.complete:
            return
        if failure is not None and not call.taken.done():
            call.taken.set_exception(failure)
        call.queue.put_nowait(failure if isinstance(failure, Exception) else None)

    async def _decode(self, call: _Call) -> None:
        avoid: set[Member] = set()
        loaded_again = False
        while True:
            member = self._fleet.choose(call.adapter_id, avoid)
            member.rows += 1
            try:
                return await self._decode_on(member, call)
            except ServerDownError as error:
                self._fleet.report_down(member)
                avoid.add(member)
                if call.last_token is not None:
                    raise UpstreamError("a vLLM server went away in the middle of an answer") from error
            except UnknownModelError as error:
                if loaded_again or call.adapter_id is None:
                    _log.error("vllm_model_unknown", server=member.server.url, adapter_id=call.adapter_id)
                    raise UpstreamError(f"{error}, though it should; the log says which server") from error
                loaded_again = True
            finally:
                member.rows -= 1

    async def _decode_on(self, member: Member, call: _Call) -> None:
        async with AsyncExitStack() as stack:
            if call.adapter_id is not None:
                await stack.enter_async_context(member.adapters.hold(call.adapter_id))
            steps = await stack.enter_async_context(member.server.complete(call.adapter_id or member.base, call.row))
            if not call.taken.done():
                call.taken.set_result(None)
                self._metrics.prompt_tokens.inc(len(call.row.prompt))
                self._report()
            async for step in steps:
                self._hand_out(call, step)
        if not call.complete:
            raise UpstreamError("a vLLM server ended its stream before the answer was complete")

    def _hand_out(self, call: _Call, step: Step) -> None:
        now = time.monotonic()
        previous, call.last_token = call.last_token, now
        if previous is None:
            self._metrics.first_token.observe(now - call.submitted)
            self._report()
        else:
            self._metrics.next_token.observe(now - previous)
        self._metrics.completion_tokens.inc()
        if step.finish_reason is not None:
            call.complete, call.row.finish_reason = True, step.finish_reason
            self._row_seconds += 0.1 * (now - call.submitted - self._row_seconds)
        call.queue.put_nowait(step)

    def _report(self) -> None:
        self._metrics.on_load(
            [call.adapter_id for call in self._calls if call.last_token is None],
            [call.adapter_id for call in self._calls if call.last_token is not None],
            self._settings.vllm_max_loras,
        )
