"""The use cases of fine-tuning. Knows HTTP's errors but not its requests."""

from __future__ import annotations

import asyncio
import copy
import re
import threading
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from jinja2 import TemplateError

from llgbm.chat import answer_ids, in_context, prompt_ids
from llgbm.prompting import AdapterRequest
from llgbm.refining.example_file import Example
from llgbm.refining.settings import RefineConfig
from service.adapters.catalogue import AdapterCatalogue
from service.adapters.errors import UnknownAdapterError
from service.adapters.service import AdapterService
from service.chat.service import PROMPT_PREFIX
from service.engine.interface import QueueFullError, StoppedError
from service.errors import ApiError
from service.jobs.database import Database
from service.jobs.errors import InvalidFileError, UnknownEventError
from service.jobs.examples import read_examples, write_examples
from service.jobs.files import Files
from service.jobs.records import Hyperparameters, JobEvent, JobOrder, JobRecord
from service.jobs.supervisor import Supervisor
from service.jobs.table import JobTable, QueueIsFullError
from service.models.loading import Models
from service.observability.metrics import Metrics
from service.settings import Settings

_RETRY_SECONDS = 30.0
_LOOK_SECONDS = 0.2
_EVENTS = 1000
_EVENT_ID = re.compile(r"ftevent-0[0-9a-f]{15}")
_LINE = re.compile(r"^line(?= \d)")


class JobService:
    """Files of examples, and the jobs that use them.

    Attributes:
        files: the uploaded files.
    """

    def __init__(
        self,
        settings: Settings,
        models: Models,
        adapters: AdapterService,
        catalogue: AdapterCatalogue,
        metrics: Metrics,
    ) -> None:
        self._settings, self._models, self._metrics = settings, models, metrics
        self._adapters, self._catalogue = adapters, catalogue
        self._database = Database(settings.store_dir)
        self.files, self._table = Files(self._database), JobTable(self._database)
        base = settings.base or models.base.spec.base_id
        self._supervisor = Supervisor(settings, base, self._database, metrics)
        self._tokenising = threading.Lock()
        self._tokenizer: Any = None
        self._ending = False

    def close(self) -> None:
        """Stop the worker, whose job continues later, and close the database. Blocks."""
        self._supervisor.stop()
        self._database.close()

    def end_waiting(self) -> None:
        """End all requests that follow or wait for a job, at a shutdown. The jobs themselves do not end."""
        self._ending = True

    async def create(
        self,
        model: str | AdapterRequest,
        training_file: str,
        validation_file: str | None = None,
        *,
        suffix: str | None = None,
        name: str | None = None,
        seed: int = 0,
        hyperparameters: Hyperparameters | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> JobRecord:
        """Check a job and put it into the queue.

        Args:
            model: the start of training: the base's id, an adapter's id or name, `prompt:` and a description, or the
                request for an adapter.

        Raises:
            ApiError: 400 for an invalid field, 429 with Retry-After for a full queue, 507 for a full disk, or an error
                of making the adapter of a description.
        """
        start, description = await self._start(model)
        await asyncio.to_thread(self._check_file, training_file, "training_file", description)
        if validation_file is not None:
            if validation_file == training_file:
                raise InvalidFileError(
                    "it is the training file, on which every adapter looks good; name a file of other examples, or "
                    "none, and a part of the training file is held out",
                    param="validation_file",
                )
            await asyncio.to_thread(self._check_file, validation_file, "validation_file", description)
        if isinstance(start, AdapterRequest):  # only now, so that a refused job leaves nothing
            start = (await self._adapters.get_or_make(start)).record.id
        order = JobOrder(
            model=model if isinstance(model, str) else self._models.maker.id_of(model),
            start=start,
            description=description,
            training_file=training_file,
            validation_file=validation_file,
            suffix=suffix,
            name=name,
            seed=seed,
            hyperparameters=hyperparameters or Hyperparameters(),
            metadata=metadata,
        )
        try:
            job = await asyncio.to_thread(self._table.add, order, max_queued=self._settings.refine_queue)
        except QueueIsFullError:
            self._metrics.rejected.labels("refine").inc()
            raise QueueFullError(
                f"{self._settings.refine_queue} fine-tuning jobs wait already", _RETRY_SECONDS
            ) from None
        self._supervisor.wake()
        return job

    async def create_from_pairs(
        self, model: str | AdapterRequest, pairs: Sequence[tuple[str, str]], *, name: str | None = None
    ) -> JobRecord:
        """A job on a new file of (input, output) pairs. Raises ApiError as `create`; the file is then deleted."""
        content = write_examples(pairs)
        file = await asyncio.to_thread(self.files.add, "examples.jsonl", content, param="examples")
        try:
            return await self.create(model, file.id, name=name)
        except BaseException as error:
            await asyncio.to_thread(self.files.delete, file.id)
            if isinstance(error, InvalidFileError):  # the client sent examples, not lines of a file
                raise InvalidFileError(_LINE.sub("example", error.message), param="examples") from error
            raise

    async def _start(self, model: str | AdapterRequest) -> tuple[str | AdapterRequest | None, str | None]:
        """The adapter to start from, or the request that makes it, and the description of its task."""
        if isinstance(model, AdapterRequest):
            return model, model.descriptions[0]
        if model == self._models.base.spec.base_id:
            return None, None
        if model.startswith(PROMPT_PREFIX):
            description = model.removeprefix(PROMPT_PREFIX)
            try:
                return self._adapters.request((description,)), description
            except ApiError as error:
                raise ApiError(400, error.message, param="model") from error
        try:
            record = await self._catalogue.record(model)
        except UnknownAdapterError as error:
            raise ApiError(
                400,
                f"there is no model {model!r}. Start from the base ({self._models.base.spec.base_id}), an adapter from "
                "GET /v1/models, or 'prompt:' and the description of a task",
                code="model_not_found",
                param="model",
            ) from error
        return record.id, record.descriptions[0] if record.descriptions else None

    def _check_file(self, file: str, param: str, description: str | None) -> None:
        examples = read_examples(self.files.examples(file, param), param=param)
        if len(examples) > self._settings.refine_rows:
            raise InvalidFileError(
                f"there are {len(examples)} examples, and a job learns from {self._settings.refine_rows} at most "
                "(LLGBM_REFINE_ROWS)",
                param=param,
            )
        limit = min(self._models.max_context, RefineConfig().max_row_tokens)
        with self._tokenising:
            if self._tokenizer is None:  # a separate one, because a tokenizer may change its settings during a call
                self._tokenizer = copy.deepcopy(self._models.base.tokenizer)
            for example in examples:
                length = self._length(example, param, description)
                if length > limit:
                    raise InvalidFileError(
                        f"{example.place}: it has {length} tokens{' with the description' if description else ''}, and "
                        f"an example has at most {limit}; shorten or remove it",
                        param=param,
                    )

    def _length(self, example: Example, param: str, description: str | None) -> int:
        try:
            given = prompt_ids(self._tokenizer, in_context(example.row.messages, description=description))
            return len(given) + len(answer_ids(self._tokenizer, example.row.answer))
        except (TemplateError, ValueError):
            raise InvalidFileError(f"{example.place}: the chat template refuses it", param=param) from None

    async def record(self, identity: str) -> JobRecord:
        """The current state of a job. Raises ApiError 404."""
        return await asyncio.to_thread(self._table.record, identity)

    async def page(self, limit: int, after: str | None) -> tuple[list[JobRecord], bool]:
        """Up to `limit` jobs, the newest first; and whether there are more. Raises ApiError 404 for `after`."""
        return await asyncio.to_thread(self._table.page, limit, after)

    async def cancel(self, identity: str) -> JobRecord:
        """Cancel a job. Raises ApiError: 404, or 400 if it has ended."""
        await self.record(identity)
        before = await asyncio.to_thread(self._table.cancel, identity)
        if before is None:
            job = await self.record(identity)
            raise ApiError(400, f"the job has ended already; its status is {job.status}", code="job_ended")
        if before == "queued":  # a running job is counted by its supervisor
            self._metrics.jobs.labels("cancelled").inc()
        self._supervisor.wake()
        return await self.record(identity)

    async def events(self, identity: str, limit: int, after: str | None) -> tuple[list[JobEvent], bool]:
        """Up to `limit` events of a job, the newest first. Raises ApiError 404."""
        await self.record(identity)
        return await asyncio.to_thread(self._table.events, identity, limit, _number(after))

    async def follow(self, identity: str, after: str | None = None) -> AsyncIterator[JobEvent]:
        """The events of a job, the oldest first, as they come, until it ends.

        Raises:
            ApiError: 404, or 503 at a shutdown.
        """
        last = _number(after)
        while True:
            job = await self.record(identity)
            more = True
            while more:
                found, more = await asyncio.to_thread(self._table.events, identity, _EVENTS, last, ascending=True)
                for item in found:
                    last = item.seq
                    yield item
            if job.ended:
                return
            if self._ending:
                raise StoppedError("the service is shutting down; the job continues after its next start")
            await asyncio.sleep(_LOOK_SECONDS)

    async def wait(self, identity: str, seconds: float) -> JobRecord:
        """Wait until a job ends, for at most `seconds` or until a shutdown; returns its state."""
        deadline = time.monotonic() + seconds
        while not (job := await self.record(identity)).ended and time.monotonic() < deadline and not self._ending:
            await asyncio.sleep(min(_LOOK_SECONDS, seconds))
        return job


def _number(event: str | None) -> int | None:
    """The number in the id of an event."""
    if event is None:
        return None
    if _EVENT_ID.fullmatch(event) is None:
        raise UnknownEventError(event)
    return int(event.removeprefix("ftevent-"), 16)
