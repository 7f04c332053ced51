"""Which process may run a job, and how often a job is tried. The workers here end because a file is missing."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from service.jobs.database import FOLDER, Database
from service.jobs.records import JobOrder, JobResult
from service.jobs.supervisor import MAX_ATTEMPTS, Supervisor
from service.jobs.table import JobTable, QueueIsFullError
from service.observability.metrics import Metrics
from service.settings import Settings
from tests.service.support.harness import wait_until

ORDER = JobOrder(model="base", start=None, description=None, training_file="file-x")
RESULT = JobResult(
    steps=1, loss=1.0, start=None, refined=None, helped=None, better="a", note="n", seconds=1, results_file="file-r"
)


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    database = Database(settings.store_dir)
    yield database
    database.close()


@pytest.fixture
def table(database: Database) -> JobTable:
    return JobTable(database)


def shown(metrics: Metrics) -> set[str]:
    return set(metrics.render().decode().splitlines())


def leave(settings: Settings, job: str, *suffixes: str) -> None:
    """Create the files that a stopped or killed worker leaves."""
    for suffix in suffixes:
        (settings.store_dir / FOLDER / f"{job}{suffix}").write_bytes(b"left")


def left(settings: Settings) -> list[str]:
    return [path.name for path in (settings.store_dir / FOLDER).iterdir() if path.name.startswith("ftjob-")]


def test_a_job_whose_worker_is_always_lost_fails(settings: Settings, database: Database, table: JobTable) -> None:
    job = table.add(ORDER, max_queued=1)
    for attempt in range(1, MAX_ATTEMPTS + 1):
        claimed = table.claim()
        assert claimed is not None
        assert (claimed.id, claimed.status, claimed.attempts) == (job.id, "running", attempt)
    metrics = Metrics()
    supervisor = Supervisor(settings, "base", database, metrics)
    wait_until(lambda: table.record(job.id).ended)
    supervisor.stop()
    failed = table.record(job.id)
    assert (failed.status, failed.error_code) == ("failed", "worker_lost")
    assert b'llgbm_jobs_ended_total{status="failed"} 1.0' in metrics.render()


def test_a_job_is_counted_while_it_runs_and_when_it_has_ended(
    settings: Settings, database: Database, table: JobTable
) -> None:
    job = table.add(ORDER, max_queued=1)
    metrics = Metrics()
    supervisor = Supervisor(settings, "base", database, metrics)
    wait_until(lambda: {'llgbm_jobs{status="queued"} 0.0', 'llgbm_jobs{status="running"} 1.0'} <= shown(metrics))
    assert table.record(job.id).status == "running"
    wait_until(lambda: 'llgbm_jobs_ended_total{status="failed"} 1.0' in shown(metrics), 100)
    wait_until(lambda: 'llgbm_jobs{status="running"} 0.0' in shown(metrics))
    supervisor.stop()
    assert table.record(job.id).error_code == "file_not_found"


def test_a_worker_starts_whatever_secrets_its_service_has(
    settings: Settings, database: Database, table: JobTable
) -> None:
    job = table.add(ORDER, max_queued=1)
    secrets = {"redis_url": SecretStr("redis://:secret@nobody.example:6379/0"), "vllm_api_key": SecretStr("secret")}
    supervisor = Supervisor(settings.model_copy(update=secrets), "base", database, Metrics())
    wait_until(lambda: table.record(job.id).ended, 100)
    supervisor.stop()
    assert table.record(job.id).error_code == "file_not_found"  # so it has read its settings


def test_files_of_jobs_that_nobody_goes_on_with_are_deleted(
    settings: Settings, database: Database, table: JobTable
) -> None:
    cancelled, lost = (table.add(ORDER, max_queued=2).id for _ in range(2))
    for job in (cancelled, lost):
        leave(settings, job, ".safetensors", ".reserve", ".tmp")
    table.cancel(cancelled)
    for _ in range(MAX_ATTEMPTS):
        table.claim()
    supervisor = Supervisor(settings, "base", database, Metrics())
    wait_until(lambda: table.record(lost).ended)
    supervisor.stop()
    assert left(settings) == []


def test_a_worker_finds_the_checkpoint_of_its_job_and_of_no_other(
    settings: Settings, database: Database, table: JobTable
) -> None:
    cancelled, job = (table.add(ORDER, max_queued=2).id for _ in range(2))
    leave(settings, cancelled, ".safetensors", ".tmp")
    leave(settings, job, ".safetensors", ".tmp")
    table.cancel(cancelled)
    supervisor = Supervisor(settings, "base", database, Metrics())
    wait_until(lambda: table.record(job).status == "running")
    wait_until(lambda: f"{cancelled}.safetensors" not in left(settings))
    assert f"{job}.safetensors" in left(settings)
    wait_until(lambda: table.record(job).ended, 100)
    wait_until(lambda: left(settings) == [])
    supervisor.stop()


def test_nobody_starts_a_worker_while_another_has_the_lock(
    settings: Settings, database: Database, table: JobTable
) -> None:
    job = table.add(ORDER, max_queued=1)
    with Path(settings.store_dir / FOLDER / "worker.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        metrics = Metrics()
        supervisor = Supervisor(settings, "base", database, metrics)
        wait_until(lambda: b'llgbm_jobs{status="queued"} 1.0' in metrics.render())
        time.sleep(1)
        supervisor.stop()
    assert table.record(job.id).status == "queued"


def test_what_has_ended_never_changes(table: JobTable) -> None:
    job = table.add(ORDER, max_queued=1)
    with pytest.raises(QueueIsFullError):
        table.add(ORDER, max_queued=1)
    table.claim()
    assert table.step(job.id, 1, 2, 0.5)
    assert table.cancel(job.id) == "running"
    ended = table.record(job.id)
    assert not table.step(job.id, 2, 2, 0.4)
    assert not table.succeed(job.id, "lora-x", RESULT, "done")
    assert not table.fail(job.id, "code", "reason")
    assert table.cancel(job.id) is None
    table.give_back(job.id)
    assert table.record(job.id) == ended
    assert table.claim() is None
    assert table.events(job.id, 10, None)[0][0].message == "The job was cancelled"


def test_a_job_that_is_given_back_is_the_next_one_and_has_lost_no_attempt(table: JobTable) -> None:
    first, second = (table.add(ORDER, max_queued=2) for _ in range(2))
    table.claim()
    table.give_back(first.id)
    assert table.record(first.id).status == "queued"
    claimed = table.claim()
    assert claimed is not None
    assert (claimed.id, claimed.attempts) == (first.id, 1)
    assert table.succeed(first.id, "lora-x", RESULT, "done")
    assert table.record(first.id).result == RESULT
    claimed = table.claim()
    assert claimed is not None
    assert claimed.id == second.id
