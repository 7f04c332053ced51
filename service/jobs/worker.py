"""The process that refines one adapter: `python -m service.jobs.worker`, started by `service.jobs.supervisor`.

It reads its task from standard input, which the service keeps open; the worker ends when the service ends. It holds the
worker lock on an open file, which the kernel releases when the process ends. The training state is regularly written
next to the database, so that another worker can continue the job.
"""

from __future__ import annotations

import contextlib
import csv
import io
import os
import sys
import threading
import time
from collections.abc import Sequence

import structlog
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from llgbm.adapters.peft_io import content_digest
from llgbm.base import INT8_FOLDER, load_base
from llgbm.errors import CheckpointError, LLGBMError
from llgbm.fitting.memory import keep_freed_memory
from llgbm.linears.frozen_linear import Storage, fastest_storage, fastest_training_storage
from llgbm.refining.refine import refine
from llgbm.refining.settings import RefineConfig, Refined, RefineRow, RefineStep
from service.adapter_id import id_of_content
from service.adapters.files import AdapterFiles, room_for
from service.adapters.records import new_record
from service.adapters.shared_files import open_files
from service.errors import ApiError
from service.jobs.database import Database
from service.jobs.examples import read_examples
from service.jobs.files import RESULTS, Files
from service.jobs.records import JobRecord, JobResult
from service.jobs.table import JobTable
from service.jobs.task import Task, reserve_path, state_path
from service.observability.logs import configure_logging
from service.settings import Settings

NICENESS = 10
_SAVE_REST = 20
"""Writing the state takes at most 1 / _SAVE_REST of the time."""
_SAVE_SECONDS = 0.5
_RESERVE_BYTES = 1 << 18
"""Disk space for the record and the event of a failure, with the database's journal."""
_log = structlog.get_logger("service.jobs.worker")


class _UnwantedError(Exception):
    """The job was cancelled."""


class _Worker:
    def __init__(self, task: Task, settings: Settings) -> None:
        self._task, self._settings = task, settings
        database = Database(settings.store_dir)
        self._table, self._files = JobTable(database), Files(database)
        self._state_path = state_path(settings.store_dir, task.job)
        self._saved, self._save_took = time.monotonic(), 0.0

    def run(self) -> None:
        """Run the job and record its outcome.

        Raises:
            StoreFullError: the outcome could not be recorded, because the disk is full.
        """
        reserve = reserve_path(self._settings.store_dir, self._task.job)
        with contextlib.suppress(OSError):  # without it, the first step reports the full disk
            reserve.write_bytes(b"\0" * _RESERVE_BYTES)
        failure = self._attempt()
        self._state_path.unlink(missing_ok=True)
        reserve.unlink(missing_ok=True)  # first, because on a full disk this frees the space for recording the reason
        if failure is not None:
            code, reason = failure
            _log.warning("job_failed", job=self._task.job, code=code)
            self._table.fail(self._task.job, code, reason)

    def _attempt(self) -> tuple[str, str] | None:
        """Run the job; returns code and reason of a failure, else None."""
        try:
            self._refine(self._table.record(self._task.job))
        except _UnwantedError:
            _log.info("job_not_wanted", job=self._task.job)
        except ApiError as error:
            return error.code or "error", error.message
        except LLGBMError as error:
            return "refining_failed", str(error)
        except OSError as error:
            return "os_error", f"{type(error).__name__}: {error.strerror or 'an error of the operating system'}"
        except Exception as error:
            _log.exception("job_failed")
            return "internal_error", f"an error inside the service ({type(error).__name__}); its log says more"
        return None

    def _refine(self, job: JobRecord) -> None:
        order = job.order
        rows = self._rows(order.training_file, "training_file")
        validation = () if order.validation_file is None else self._rows(order.validation_file, "validation_file")
        store = open_files(self._settings.store_dir, self._settings.store_url, self._settings.copy_bytes)
        base = load_base(
            self._task.base,
            storage=storage_of_job(self._settings),
            device=self._settings.device,
            int8_folder=self._settings.cache_dir / INT8_FOLDER,
        )
        try:
            start = None if order.start is None else store.read(order.start)
        except FileNotFoundError:
            raise ApiError(
                404, f"the adapter {order.start} to start from was deleted", code="adapter_not_found"
            ) from None
        config, state = config_of(job, len(rows)), self._load_state()
        first = "The job goes on from its last checkpoint" if state else f"Training on {len(rows)} examples has begun"
        self._table.tell(job.id, first)
        self._require_wanted()
        try:
            refined = refine(
                base, start, rows, config, validation=validation, on_step=self._on_step, resume=state or None
            )
        except CheckpointError:
            if not state:
                raise
            self._table.tell(job.id, "The checkpoint cannot be used; training begins anew", level="warn")
            refined = refine(base, start, rows, config, validation=validation, on_step=self._on_step)
        self._require_wanted()
        weights = refined.weights
        digest = content_digest(weights)
        record = new_record(
            id_of_content(digest),
            weights,
            digest=digest,
            norms=weights.product_norms(),
            base=base.spec,
            base_id=base.spec.base_id,
            source="refined",
            descriptions=() if order.description is None else (order.description,),
            start=order.start,
            warning=None if refined.helped is not False else verdict(refined),
        )
        record, made = store.write(weights, record)
        name = None
        try:
            name = self._name(job, record.id, store)
            self._keep(job, record.id, refined)
        except BaseException:  # cancelled, or the disk is full: keep nothing of the adapter
            if name is not None:
                store.unname(name)
            if made:
                store.delete(record.id)
            raise

    def _name(self, job: JobRecord, adapter: str, store: AdapterFiles) -> str | None:
        """Give the adapter the requested name; returns the name, or None."""
        name, suffix = job.order.name, job.order.suffix
        if name is None and suffix is not None:
            name = f"{suffix}-{job.id[-8:]}"  # makes the name unique
        if name is None:
            return None
        try:
            store.name(name, adapter)
        except ApiError as error:  # the adapter exists without the name
            self._table.tell(job.id, f"The adapter has no name: {error.message}", level="warn")
            return None
        return name

    def _keep(self, job: JobRecord, adapter: str, refined: Refined) -> None:
        """Record the result.

        Raises:
            _UnwantedError: the job was cancelled meanwhile.
            StoreFullError: the disk is full.
        """
        losses = self._files.add(f"{job.id}.csv", losses_csv(refined.losses), purpose=RESULTS)
        result = JobResult(
            steps=refined.steps,
            loss=refined.losses[-1],
            start=refined.start_held_out,
            refined=refined.held_out,
            helped=refined.helped,
            better=job.order.start if refined.helped is False else adapter,
            note=verdict(refined),
            seconds=refined.seconds,
            results_file=losses.id,
        )
        try:
            if not self._table.succeed(job.id, adapter, result, verdict(refined)):
                raise _UnwantedError
        except BaseException:
            self._files.delete(losses.id)
            raise

    def _rows(self, file: str, param: str) -> list[RefineRow]:
        return [example.row for example in read_examples(self._files.examples(file, param), param=param)]

    def _require_wanted(self) -> None:
        if not self._table.running(self._task.job):
            raise _UnwantedError

    def _on_step(self, step: RefineStep) -> None:
        if not self._table.step(self._task.job, step.step, step.total, step.loss, phase=step.phase):
            raise _UnwantedError
        now = time.monotonic()
        if now - self._saved >= max(_SAVE_SECONDS, _SAVE_REST * self._save_took):
            self._save(step.state())
            self._saved = time.monotonic()
            self._save_took = self._saved - now

    def _save(self, state: dict[str, Tensor]) -> None:
        temporary = self._state_path.with_suffix(".tmp")
        try:
            with room_for("the checkpoint of a job"):
                temporary.write_bytes(save(state))  # not save_file, whose errors do not show a full disk
                temporary.rename(self._state_path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def _load_state(self) -> dict[str, Tensor]:
        """The state of an earlier worker; empty if there is none or it cannot be read."""
        try:
            return load_file(self._state_path)
        except FileNotFoundError:
            return {}
        except SafetensorError:
            self._table.tell(self._task.job, "The checkpoint is damaged; training begins anew", level="warn")
            return {}


def storage_of_job(settings: Settings) -> Storage:
    """How a job's base stores its Linear weights: where it costs little time, as the file that the service reads."""
    if settings.refine_storage != "auto":
        return settings.refine_storage
    fastest = fastest_training_storage(settings.device)
    served = fastest_storage(settings.device) if settings.base_storage == "auto" else settings.base_storage
    maps = fastest == "bfloat16_activations" and settings.engine == "torch" and served == "int8"
    return "int8_mapped" if maps else fastest


def config_of(job: JobRecord, rows: int) -> RefineConfig:
    """The library's settings for a job."""
    chosen, default = job.order.hyperparameters, RefineConfig()
    batch = chosen.batch_size or default.rows_per_step
    return RefineConfig(
        description=job.order.description,
        steps=None if chosen.n_epochs is None else max(1, -(-chosen.n_epochs * rows // batch)),
        rows_per_step=batch,
        learning_rate=default.learning_rate * (chosen.learning_rate_multiplier or 1.0),
        seed=job.order.seed,
    )


def verdict(refined: Refined) -> str:
    """A sentence for the user that says whether refining helped."""
    if refined.start_held_out is None or refined.held_out is None:
        return "The adapter is ready; there were too few examples to hold some out, so try it before you use it"
    before, after = refined.start_held_out.accuracy, refined.held_out.accuracy
    scores = f"held-out accuracy {100 * before:.0f} % before, {100 * after:.0f} % after"
    if refined.helped:
        return f"The adapter is ready; {scores}"
    return f"Refining did not help ({scores}): the start is the better choice"


def losses_csv(losses: Sequence[float]) -> bytes:
    """The loss of each step as a table."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["step", "train_loss"])
    writer.writerows(enumerate(losses, 1))
    return text.getvalue().encode()


def _end_with_the_service() -> None:
    # not with sys.stdin, because the interpreter waits for its lock at the end
    while os.read(sys.stdin.fileno(), 1 << 16):
        pass
    os._exit(0)


def _processors() -> int:
    """How many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def main() -> None:
    """Run the job of the task on standard input."""
    task = Task.model_validate_json(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_the_service, daemon=True).start()
    settings = Settings(_env_file=None, **task.settings)  # type: ignore[arg-type]
    configure_logging(settings)
    os.nice(NICENESS)
    keep_freed_memory()
    torch.set_num_threads(settings.refine_threads or max(1, _processors() // 2))
    _Worker(task, settings).run()


if __name__ == "__main__":
    main()
