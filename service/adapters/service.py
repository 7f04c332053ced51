"""Makes, lends, combines and loads adapters. Knows HTTP's errors but not its requests.

Making is single flight: simultaneous requests for one id share one piece of work, which continues if the first client
disconnects. Processes that share a Redis are single flight too, see `service.adapters.generation_lock`. The maker runs
in the torch thread; files are written and read in worker threads.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import structlog
import torch

from llgbm.adapters.peft_io import content_digest
from llgbm.conditioning.context_choice import ContextSetting, ContextWanted
from llgbm.errors import AdapterFormatError, AdapterMismatchError, ConfigError
from llgbm.lora import LoRAWeights, combine
from llgbm.prompting import AdapterRequest, MadeAdapter
from service.adapter_id import id_of_content
from service.adapters.catalogue import AdapterCatalogue
from service.adapters.errors import AdapterDamagedError, UnknownAdapterError, UnusableAdapterError
from service.adapters.generation_lock import GenerationLock
from service.adapters.peft_folder import read_folder
from service.adapters.records import AdapterRecord, new_record, other_base
from service.adapters.store import AdapterReference, AdapterStore, Lease
from service.engine.interface import QueueFullError
from service.engine.torch_engine import Engine
from service.errors import ApiError
from service.models.loading import Models
from service.observability.metrics import Metrics
from service.settings import Settings

_log = structlog.get_logger("service.adapters")
_RETRY_SECONDS = 1.0
_T = TypeVar("_T")


@dataclass(frozen=True)
class Outcome:
    """A requested adapter.

    Attributes:
        made: whether it is new.
        seconds: time of encode, generate and store; empty if it existed already.
    """

    record: AdapterRecord
    made: bool
    seconds: dict[str, float]


class AdapterService:
    """The operations on adapters, over the engine, the store and the maker."""

    def __init__(
        self,
        settings: Settings,
        models: Models,
        engine: Engine,
        store: AdapterStore,
        catalogue: AdapterCatalogue,
        lock: GenerationLock,
        metrics: Metrics,
    ) -> None:
        self._lock = lock
        self._settings, self._models, self._engine = settings, models, engine
        self._store, self._files, self._catalogue, self._metrics = store, store.files, catalogue, metrics
        self._making: dict[str, asyncio.Task[Outcome]] = {}
        self._storing = 0

    # making

    def request(
        self,
        descriptions: tuple[str, ...],
        examples: tuple[tuple[str, str], ...] = (),
        scale: float = 1.0,
        *,
        param: str = "prompt",
    ) -> AdapterRequest:
        """A checked request for an adapter.

        Args:
            descriptions, examples, scale: as `AdapterRequest` has them.
            param: field of the HTTP request that has the description.

        Raises:
            ApiError: 413 too large, 422 empty.
        """
        described = sum(map(len, descriptions))
        size = described + sum(len(i) + len(o) for i, o in examples)
        limit = self._settings.max_prompt_chars
        if size > limit:
            raise ApiError(
                413,
                f"the task's description and examples have {size} characters, at most {limit} are read",
                param="examples" if described <= limit else param,
            )
        try:
            return AdapterRequest(descriptions, examples, scale)
        except ConfigError as error:
            raise ApiError(422, str(error), param=param) from error

    async def get_or_make(self, request: AdapterRequest) -> Outcome:
        """The adapter of a request; made if it does not exist."""
        identity = self._models.maker.id_of(request)
        existing = await self._existing(identity)
        if existing is not None:
            return existing
        return await self._in_time(self._single_flight(identity, lambda: self._make_locked(identity, request)))

    async def _in_time(self, making: Awaitable[_T]) -> _T:
        """Wait for an adapter for at most LLGBM_REQUEST_TIMEOUT seconds.

        After a timeout, the generation of an adapter continues; combining or loading one does not.
        """
        seconds = self._settings.request_timeout
        try:
            async with asyncio.timeout(seconds) as limit:
                return await making
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise ApiError(504, f"the adapter was not ready after {seconds:g} seconds; ask for it again") from error

    async def context_setting(self, request: AdapterRequest, wanted: ContextWanted = "auto") -> ContextSetting:
        """The context for a request, and the scale of its adapter there.

        Raises:
            ApiError: 422, the request lacks the text for the context `wanted`.
        """
        try:
            return await self._engine.run(lambda: self._models.maker.context_setting(request, wanted))
        except ConfigError as error:
            raise ApiError(422, str(error), param="context") from error

    async def warning(self, request: AdapterRequest) -> str | None:
        """The warning that the adapter of a request would have, without keeping the adapter."""
        (made,) = await self._engine.run(lambda: self._models.maker.make([request]))
        return made.warning

    async def _existing(self, identity: str) -> Outcome | None:
        record = await asyncio.to_thread(self._files.record, identity)
        if record is None:
            return None
        self._metrics.adapters.labels("existed").inc()
        return Outcome(record, made=False, seconds={})

    async def _make_locked(self, identity: str, request: AdapterRequest) -> Outcome:
        async with self._lock.hold(identity):
            # another process may have made it meanwhile
            return await self._existing(identity) or await self._make(identity, request)

    async def _single_flight(self, identity: str, work: Callable[[], Coroutine[Any, Any, Outcome]]) -> Outcome:
        task = self._making.get(identity)
        first = task is None
        if task is None:
            self._require_job_slot()
            task = self._making[identity] = asyncio.create_task(work())
            task.add_done_callback(lambda done: self._made(identity, done))
        outcome = await asyncio.shield(task)
        return outcome if first else Outcome(outcome.record, made=False, seconds=outcome.seconds)

    def _made(self, identity: str, task: asyncio.Task[Outcome]) -> None:
        self._making.pop(identity, None)
        if not task.cancelled():
            task.exception()  # mark the exception as retrieved, even if no caller waits any more

    def _require_job_slot(self) -> None:
        """Refuse another adapter while LLGBM_MAX_JOBS are being made: each is in memory until it is written."""
        under_way = len(self._making) + self._storing
        if under_way >= self._settings.max_jobs:
            self._metrics.rejected.labels("jobs").inc()
            raise QueueFullError(f"{under_way} adapters are being made already", _RETRY_SECONDS)

    @contextmanager
    def _job_slot(self) -> Iterator[None]:
        self._require_job_slot()
        self._storing += 1
        try:
            yield
        finally:
            self._storing -= 1

    async def _make(self, identity: str, request: AdapterRequest, *, replacing: bool = False) -> Outcome:
        def make() -> tuple[MadeAdapter, dict[str, float]]:
            (made,) = self._models.maker.make([request])
            # the maker returns views into the tensors of a whole batch; keep only this adapter's part
            made = replace(made, weights=made.weights.map(lambda t: t.detach().contiguous().clone()))
            return made, made.weights.product_norms()

        start = time.perf_counter()
        made, norms = await self._engine.run(make)
        ready = time.perf_counter()
        base = self._models.base.spec
        record = new_record(
            identity,
            made.weights,
            digest=await asyncio.to_thread(content_digest, made.weights),
            norms=norms,
            base=base,
            base_id=base.base_id,
            source="generated",
            descriptions=request.descriptions,
            examples=request.examples,
            scale=request.scale,
            generator=self._models.generator_digest,
            nearest=made.nearest,
            confidence=made.confidence,
            scale_in_context=made.scale_in_context,
            warning=made.warning,
        )
        record, new = await self._keep(made.weights, record, replacing=replacing)
        done = time.perf_counter()
        seconds = {**made.seconds, "store": done - ready, "total": done - start}
        for stage, value in seconds.items():
            self._metrics.generation_seconds.labels(stage).observe(value)
        self._metrics.adapters.labels("made" if new else "existed").inc()
        return Outcome(record, new, seconds)

    async def _keep(
        self, weights: LoRAWeights, record: AdapterRecord, *, replacing: bool = False
    ) -> tuple[AdapterRecord, bool]:
        def write() -> tuple[AdapterRecord, bool]:
            if replacing:
                self._files.discard(record.id)
            stored = self._files.write(weights, record)
            self._store.keep(record.id, weights)
            return stored

        stored = await asyncio.to_thread(write)
        await self._catalogue.stored(stored[0])
        return stored

    # using

    async def refer(self, identity: str) -> AdapterReference:
        """A reference to an adapter that another process reads from the store; its tensors are not read.

        Raises:
            ApiError: 404.
        """
        record = await asyncio.to_thread(self._files.record, identity)
        if record is None:
            raise UnknownAdapterError(identity)
        return AdapterReference(identity, sum(norm is not None for norms in record.norms.values() for norm in norms))

    async def verify(self, identity: str) -> None:
        """Verify an adapter's files before other software reads them. Repairs and raises as `lease`."""
        if await asyncio.to_thread(self._readable, identity) is None:
            self._store.forget(identity)  # a lease of an adapter in memory would not read the files
        (await self.lease(identity)).release()

    async def lease(self, identity: str) -> Lease:
        """A reference to an adapter's tensors; the caller releases it.

        A damaged adapter is made again, if it is from the loaded generator.

        Raises:
            ApiError: 404, or 500 for a damaged adapter that cannot be made again.
        """
        for last in (False, True):
            acquiring = asyncio.ensure_future(asyncio.to_thread(self._store.acquire, identity))
            try:
                return await asyncio.shield(acquiring)
            except asyncio.CancelledError:
                acquiring.add_done_callback(_release_unwanted)
                raise
            except FileNotFoundError:
                raise UnknownAdapterError(identity) from None
            except AdapterMismatchError as error:
                raise ApiError(422, f"{identity} does not fit the base: {error}", code="adapter_mismatch") from error
            except (AdapterDamagedError, AdapterFormatError) as error:
                if not await asyncio.to_thread(self._files.exists, identity):  # deleted while it was read
                    raise UnknownAdapterError(identity) from None
                _log.error("adapter_damaged", adapter_id=identity, error=str(error))
                if last or not await self._make_again(identity):
                    raise UnusableAdapterError(identity) from error
        raise UnknownAdapterError(identity)

    async def _make_again(self, identity: str) -> bool:
        record = await asyncio.to_thread(self._files.record, identity)
        if record is None:
            raise UnknownAdapterError(identity)
        if record.source != "generated":
            return False
        request = AdapterRequest(record.descriptions, record.examples, record.scale)
        if self._models.maker.id_of(request) != identity:  # made by another generator
            return False

        async def replace() -> Outcome:
            async with self._lock.hold(identity):
                repaired = await asyncio.to_thread(self._readable, identity)
                if repaired is not None:  # another process has repaired it meanwhile
                    return Outcome(repaired, made=False, seconds={})
                return await self._make(identity, request, replacing=True)

        await self._single_flight(identity, replace)
        return True

    def _readable(self, identity: str) -> AdapterRecord | None:
        try:
            self._files.read(identity)
        except (FileNotFoundError, AdapterDamagedError, AdapterFormatError):
            return None
        return self._files.record(identity)

    # from other sources

    async def compose(self, ids: Sequence[str], factors: Sequence[float]) -> Outcome:
        """The adapter whose effect is the weighted sum of the effects of others.

        Raises:
            ApiError: 404 for an unknown adapter, 422 if their bases differ or the rank becomes too large.
        """
        identities = [await self._catalogue.resolve(i) for i in ids]
        leases: list[Lease] = []
        try:
            for identity in identities:
                leases.append(await self.lease(identity))
            self._check_rank(sum(lease.weights.spec.rank for lease in leases))
            bases = {(await self._catalogue.record(identity)).base for identity in identities}
            if len(bases) > 1:
                raise ApiError(422, f"the adapters are for different bases: {', '.join(sorted(bases))}", param="ids")
            parts = tuple(zip(identities, factors, strict=True))
            return await self._store_new(
                lambda: combine([lease.weights for lease in leases], factors),
                base_id=bases.pop(),
                source="composed",
                parts=parts,
            )
        finally:
            for lease in leases:
                lease.release()

    async def load(self, path: str) -> Outcome:
        """Copy a PEFT folder below one of the allowed roots into the store.

        Raises:
            ApiError: 403 outside of the roots, 404 without such a folder, 422 if it is not an adapter for this base, or
                names another base and LLGBM_STRICT_BASE is set.
        """
        weights, base_id = await asyncio.to_thread(read_folder, path, self._settings.adapter_roots)
        self._check_rank(weights.spec.rank)
        warning = other_base(base_id, self._models.base.spec.base_id)
        if warning is not None:
            if self._settings.strict_base:
                raise ApiError(422, f"{warning} (LLGBM_STRICT_BASE)", code="other_base", param="lora_path")
            _log.warning("adapter_of_another_base", reason=warning)
        return await self._store_new(lambda: weights, base_id=base_id, source="loaded", warning=warning)

    def _check_rank(self, rank: int) -> None:
        if rank > self._settings.max_rank:
            raise ApiError(
                422, f"the adapter has rank {rank}, and at most {self._settings.max_rank} are served (LLGBM_MAX_RANK)"
            )

    async def _store_new(self, make: Callable[[], LoRAWeights], *, base_id: str, **known: Any) -> Outcome:
        """Store an adapter under the hash of its content."""

        def prepare() -> tuple[LoRAWeights, dict[str, float], str]:
            weights = make()
            weights.spec.require_fits(self._models.base.spec)
            weights.require_finite()
            return weights, weights.to(torch.float32).product_norms(), content_digest(weights)

        with self._job_slot():
            start = time.perf_counter()
            weights, norms, digest = await self._in_time(self._engine.run(prepare))
            ready = time.perf_counter()
            record = new_record(
                id_of_content(digest),
                weights,
                digest=digest,
                norms=norms,
                base=self._models.base.spec,
                base_id=base_id,
                **known,
            )
            record, new = await self._keep(weights, record)
            done = time.perf_counter()
        self._metrics.adapters.labels(record.source if new else "existed").inc()
        return Outcome(record, new, {"generate": ready - start, "store": done - ready, "total": done - start})


def _release_unwanted(done: asyncio.Future[Lease]) -> None:
    """Release a reference whose caller was cancelled while it was being acquired."""
    if not done.cancelled() and done.exception() is None:
        done.result().release()
