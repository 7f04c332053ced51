"""The jobs and their events in the database. Each change of a status is one conditional statement.

A job goes from queued to running to succeeded, failed or cancelled. A job that has ended never changes, and writing an
outcome returns whether the job was still running. All methods block and are thread-safe.
"""

from __future__ import annotations

import json
import sqlite3
import time
import uuid
from collections.abc import Mapping
from typing import Any

from service.jobs.database import Database
from service.jobs.errors import UnknownJobError
from service.jobs.records import JobEvent, JobOrder, JobRecord, JobResult, Status

_UNFINISHED = "status IN ('queued', 'running')"


class QueueIsFullError(Exception):
    """The queue has its maximum number of jobs."""


class JobTable:
    """The jobs of a store."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # for clients

    def add(self, order: JobOrder, *, max_queued: int) -> JobRecord:
        """A new job at the end of the queue.

        Raises:
            QueueIsFullError: `max_queued` jobs are already waiting.
            StoreFullError: the disk is full.
        """
        identity = f"ftjob-{uuid.uuid4().hex}"
        with self._database.writing() as connection:
            (queued,) = connection.execute("SELECT count(*) FROM job WHERE status = 'queued'").fetchone()
            if queued >= max_queued:
                raise QueueIsFullError
            connection.execute(
                "INSERT INTO job (id, created, status, order_json) VALUES (?, ?, 'queued', ?)",
                (identity, time.time(), order.model_dump_json()),
            )
            _tell(connection, identity, "The job waits for its turn")
        return self.record(identity)

    def record(self, identity: str) -> JobRecord:
        """The current state of a job. Raises UnknownJobError."""
        rows = self._database.rows("SELECT * FROM job WHERE id = ?", (identity,))
        if not rows:
            raise UnknownJobError(identity)
        return _record(rows[0])

    def page(self, limit: int, after: str | None) -> tuple[list[JobRecord], bool]:
        """Up to `limit` jobs, the newest first; and whether there are more. Raises UnknownJobError for `after`."""
        if after is not None:
            self.record(after)
        rows = self._database.rows(
            "SELECT * FROM job WHERE ?1 IS NULL OR seq < (SELECT seq FROM job WHERE id = ?1)"
            " ORDER BY seq DESC LIMIT ?2",
            (after, limit + 1),
        )
        return [_record(row) for row in rows[:limit]], len(rows) > limit

    def events(
        self, identity: str, limit: int, after: int | None, *, ascending: bool = False
    ) -> tuple[list[JobEvent], bool]:
        """Up to `limit` events after the one with number `after`; the newest first unless `ascending`."""
        compare, direction = (">", "ASC") if ascending else ("<", "DESC")
        rows = self._database.rows(
            f"SELECT * FROM event WHERE job = ?1 AND (?2 IS NULL OR seq {compare} ?2)"
            f" ORDER BY seq {direction} LIMIT ?3",
            (identity, after, limit + 1),
        )
        return [_event(row) for row in rows[:limit]], len(rows) > limit

    def cancel(self, identity: str) -> Status | None:
        """Cancel a job; returns its earlier status, or None if it had ended. Its worker stops after the step."""
        with self._database.writing() as connection:
            row = connection.execute("SELECT status FROM job WHERE id = ?", (identity,)).fetchone()
            ended = _end(connection, identity, "cancelled", "The job was cancelled")
            before: Status | None = row["status"] if ended else None
            return before

    def counts(self) -> dict[str, int]:
        """Number of waiting and running jobs."""
        rows = self._database.rows(f"SELECT status, count(*) FROM job WHERE {_UNFINISHED} GROUP BY status")
        return dict(map(tuple, rows))

    # for supervisors and workers

    def claim(self) -> JobRecord | None:
        """Mark the oldest job that has not ended as running and return it; None if there is none.

        The caller must hold the worker lock. A job that is already running has then lost its worker.
        """
        with self._database.writing() as connection:
            row = connection.execute(f"SELECT * FROM job WHERE {_UNFINISHED} ORDER BY seq LIMIT 1").fetchone()
            if row is None:
                return None
            connection.execute(
                "UPDATE job SET status = 'running', attempts = attempts + 1, started = coalesce(started, ?)"
                " WHERE id = ?",
                (time.time(), row["id"]),
            )
        return self.record(row["id"])

    def give_back(self, identity: str) -> None:
        """Return the job of a worker that was stopped with its service; this does not count as a failed attempt."""
        with self._database.writing() as connection:
            changed = connection.execute(
                "UPDATE job SET status = 'queued', attempts = attempts - 1 WHERE id = ? AND status = 'running'",
                (identity,),
            ).rowcount
            if changed:
                _tell(connection, identity, "The service stops; the job goes on when it is back")

    def running(self, identity: str) -> bool:
        """Whether the job is still running, so not cancelled."""
        return bool(self._database.rows("SELECT 1 FROM job WHERE id = ? AND status = 'running'", (identity,)))

    def tell(self, identity: str, message: str, *, level: str = "info") -> None:
        """Add a message to the events of a job."""
        with self._database.writing() as connection:
            _tell(connection, identity, message, level=level)

    def step(self, identity: str, step: int, total: int, loss: float, **more: Any) -> bool:
        """Record a step; False if the job was cancelled."""
        with self._database.writing() as connection:
            changed = connection.execute(
                "UPDATE job SET step = ?, total = ?, loss = ? WHERE id = ? AND status = 'running'",
                (step, total, loss, identity),
            ).rowcount
            if changed:
                data = {"step": step, "total_steps": total, "train_loss": loss, **more}
                _tell(connection, identity, f"Step {step}/{total}: training loss={loss:.2f}", data=data)
            return bool(changed)

    def succeed(self, identity: str, adapter: str, result: JobResult, message: str) -> bool:
        """Record the adapter of a job; False if the job was cancelled meanwhile."""
        with self._database.writing() as connection:
            ended = _end(connection, identity, "succeeded", message)
            if ended:
                connection.execute(
                    "UPDATE job SET adapter = ?, result_json = ? WHERE id = ?",
                    (adapter, result.model_dump_json(), identity),
                )
            return ended

    def fail(self, identity: str, code: str, reason: str) -> bool:
        """Record the reason of a failure; False if the job has already ended."""
        with self._database.writing() as connection:
            ended = _end(connection, identity, "failed", f"The job failed: {reason}", level="error")
            if ended:
                connection.execute("UPDATE job SET error_code = ?, error = ? WHERE id = ?", (code, reason, identity))
            return ended


def _end(connection: sqlite3.Connection, identity: str, status: str, message: str, *, level: str = "info") -> bool:
    changed = connection.execute(
        f"UPDATE job SET status = ?, finished = ? WHERE id = ? AND {_UNFINISHED}", (status, time.time(), identity)
    ).rowcount
    if changed:
        _tell(connection, identity, message, level=level)
    return bool(changed)


def _tell(
    connection: sqlite3.Connection,
    identity: str,
    message: str,
    *,
    level: str = "info",
    data: Mapping[str, Any] | None = None,
) -> None:
    connection.execute(
        "INSERT INTO event (job, created, level, message, data_json) VALUES (?, ?, ?, ?, ?)",
        (identity, time.time(), level, message, None if data is None else json.dumps(data)),
    )


def _record(row: sqlite3.Row) -> JobRecord:
    result = row["result_json"]
    return JobRecord(
        **{key: row[key] for key in JobRecord.model_fields if key not in ("order", "result")},
        order=JobOrder.model_validate_json(row["order_json"]),
        result=None if result is None else JobResult.model_validate_json(result),
    )


def _event(row: sqlite3.Row) -> JobEvent:
    data = row["data_json"]
    return JobEvent(
        seq=row["seq"],
        created=row["created"],
        level=row["level"],
        message=row["message"],
        data=None if data is None else json.loads(data),
    )
