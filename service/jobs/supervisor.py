"""Runs the jobs of a store one after the other, each in a separate process, so that the service stays fast.

Every process that uses the store has a supervisor. A supervisor must hold a file lock to start a worker. The worker
inherits the open file, so the lock is free exactly if there is no worker. A supervisor that gets the lock and finds a
running job knows that its worker has died, and starts a new worker for it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import subprocess
import sys
import threading
import time

import structlog
from pydantic import SecretStr

from service.jobs.database import Database
from service.jobs.records import JobRecord
from service.jobs.table import JobTable
from service.jobs.task import Task
from service.observability.metrics import Metrics
from service.settings import Settings

MAX_ATTEMPTS = 3
"""A worker may be killed for reasons outside of the job. A job whose worker is always killed must not block others."""
_TICK_SECONDS = 0.25
_PATIENCE_SECONDS = 10.0
"""Seconds for the worker of a cancelled job to finish its step, and for a stopped worker to end."""
_LOCK = "worker.lock"
_log = structlog.get_logger("service.jobs")


class Supervisor:
    """A thread that runs the queue.

    Args:
        base: hub id or folder of the base that workers load.
    """

    def __init__(self, settings: Settings, base: str, database: Database, metrics: Metrics) -> None:
        self._settings, self._base, self._metrics = settings, base, metrics
        self._database, self._table = database, JobTable(database)
        self._stopping, self._wake = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="llgbm-jobs", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Tell the thread that a job was added or cancelled."""
        self._wake.set()

    def stop(self) -> None:
        """End the worker, if there is one; its job continues when a service runs on this store again. Blocks."""
        self._stopping.set()
        self._wake.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                if self._report():
                    self._next()
            except Exception as error:  # such as a full disk; the queue is tried again
                _log.error("jobs_do_not_run", error=type(error).__name__, exc_info=error)
                self._stopping.wait(_PATIENCE_SECONDS)
            self._wake.wait(_TICK_SECONDS)
            self._wake.clear()

    def _report(self) -> bool:
        """Set the metrics of the jobs; returns whether there are any."""
        counts = self._table.counts()
        for status in ("queued", "running"):
            self._metrics.jobs_now.labels(status).set(counts.get(status, 0))
        return bool(counts)

    def _next(self) -> None:
        """Run the next job, if there is one and no other process has a worker."""
        lock = os.open(self._database.folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if not _locked(lock):
                return
            job = self._table.claim()
            lost = job is not None and job.attempts > MAX_ATTEMPTS
            self._delete_left("ftjob-*", keep=None if job is None or lost else job.id)
            if job is None:
                return
            if lost:
                self._fail(job, "worker_lost", f"its worker was lost {MAX_ATTEMPTS} times, at last at step {job.step}")
                self._metrics.jobs.labels("failed").inc()
                return
            worker = self._start(job, lock)
        finally:
            os.close(lock)  # the worker keeps its own
        self._look_after(job, worker)

    def _start(self, job: JobRecord, lock: int) -> subprocess.Popen[bytes]:
        secret = {name for name, value in self._settings if isinstance(value, SecretStr)}  # a dump would mask them
        settings = self._settings.model_dump(mode="json", exclude=secret)
        task = Task(job=job.id, base=self._base, settings=settings)
        worker = subprocess.Popen(
            [sys.executable, "-m", "service.jobs.worker"], stdin=subprocess.PIPE, pass_fds=(lock,)
        )
        _log.info("job_started", job=job.id, attempt=job.attempts, pid=worker.pid)
        if worker.stdin is not None:
            with contextlib.suppress(BrokenPipeError):  # it has died, which `_look_after` detects
                worker.stdin.write(task.model_dump_json().encode() + b"\n")
                worker.stdin.flush()
        return worker

    def _look_after(self, job: JobRecord, worker: subprocess.Popen[bytes]) -> None:
        start = time.monotonic()
        unwanted_since: float | None = None
        late = False
        while worker.poll() is None:
            if self._stopping.is_set():
                self._end(worker)
                self._table.give_back(job.id)
                return
            now = time.monotonic()
            self._report()
            if now - start > self._settings.refine_seconds and not late:
                late = True
                limit = f"it took more than {self._settings.refine_seconds:g} seconds (LLGBM_REFINE_SECONDS)"
                self._fail(job, "time_limit", limit)
            if self._observe(job.id).status != "running":
                unwanted_since = unwanted_since or now
                if now - unwanted_since > _PATIENCE_SECONDS:
                    worker.kill()
            self._wake.wait(_TICK_SECONDS)
            self._wake.clear()
        if worker.stdin is not None:
            worker.stdin.close()
        self._ended(job, worker.returncode, time.monotonic() - start)

    def _end(self, worker: subprocess.Popen[bytes]) -> None:
        if worker.stdin is not None:
            worker.stdin.close()
        try:
            worker.wait(_PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()

    def _observe(self, job: str) -> JobRecord:
        record = self._table.record(job)
        if record.loss is not None:
            self._metrics.job_loss.set(record.loss)
        return record

    def _ended(self, job: JobRecord, status: int, seconds: float) -> None:
        record = self._observe(job.id)
        self._metrics.job_seconds.observe(seconds)
        if record.ended:
            self._metrics.jobs.labels(record.status).inc()
            self._delete_left(f"{job.id}.*")
            _log.info("job_ended", job=job.id, status=record.status, code=record.error_code, seconds=round(seconds, 1))
            return
        how = f"by signal {-status}" if status < 0 else f"with status {status}"
        _log.warning("job_worker_lost", job=job.id, how=how, attempt=job.attempts)
        self._table.tell(job.id, f"The worker ended {how} at step {record.step}", level="warn")

    def _delete_left(self, pattern: str, *, keep: str | None = None) -> None:
        """Delete files that workers left next to the database, such as checkpoints, except those of the job `keep`.

        The pattern may match files of other jobs only while there is no worker.
        """
        with contextlib.suppress(OSError):
            for path in self._database.folder.glob(pattern):
                if path.stem != keep:
                    path.unlink(missing_ok=True)

    def _fail(self, job: JobRecord, code: str, reason: str) -> None:
        if self._table.fail(job.id, code, reason):
            _log.warning("job_failed", job=job.id, code=code)


def _locked(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise
    return True
