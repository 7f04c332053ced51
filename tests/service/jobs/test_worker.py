"""The work of a job's process, run in the test's process."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
import torch
import transformers

from llgbm.base import INT8_FOLDER, load_base
from service.adapters.files import AdapterFiles
from service.jobs.database import FOLDER, Database
from service.jobs.examples import write_examples
from service.jobs.files import RESULTS, Files
from service.jobs.records import Hyperparameters, JobOrder, JobRecord
from service.jobs.table import JobTable
from service.jobs.task import Task
from service.jobs.worker import _Worker, storage_of_job
from service.settings import Settings


@pytest.fixture
def job(job_settings: Settings) -> JobRecord:
    """A job of two examples that is running."""
    database = Database(job_settings.store_dir)
    file = Files(database).add("a.jsonl", write_examples([("my money", "billing"), ("it is slow", "support")]))
    order = JobOrder(
        model="base", start=None, description=None, training_file=file.id, suffix="tickets",
        hyperparameters=Hyperparameters(n_epochs=1),
    )  # fmt: skip
    JobTable(database).add(order, max_queued=1)
    claimed = JobTable(database).claim()
    database.close()
    assert claimed is not None
    return claimed


def work(job: JobRecord, settings: Settings) -> JobRecord:
    """Run the worker; returns the job's state afterwards."""
    base = settings.base or ""
    _Worker(Task(job=job.id, base=base, settings=settings.model_dump(mode="json")), settings).run()
    return JobTable(Database(settings.store_dir)).record(job.id)


def results(settings: Settings) -> list[str]:
    return [file.id for file in Files(Database(settings.store_dir)).page(10, None, purpose=RESULTS)[0]]


def test_a_job_leaves_its_adapter_its_name_and_its_losses(job: JobRecord, job_settings: Settings) -> None:
    done = work(job, job_settings)
    assert (done.status, done.error) == ("succeeded", None)
    assert done.result is not None
    assert results(job_settings) == [done.result.results_file]
    store = AdapterFiles(job_settings.store_dir)
    assert done.adapter == store.resolve(f"tickets-{job.id[-8:]}")
    assert [record.id for record in store.records()] == [done.adapter]


@pytest.mark.parametrize(
    ("multiplies", "served", "engine", "expected"),
    [
        (True, "int8", "torch", "int8_mapped"),
        (True, "float32", "torch", "bfloat16_activations"),
        (True, "int8", "vllm", "bfloat16_activations"),
        (False, "int8", "torch", "int8_training"),
    ],
)
def test_the_storage_of_a_job_is_that_of_the_service_where_it_is_fast(
    job_settings: Settings, monkeypatch: pytest.MonkeyPatch, multiplies: bool, served: str, engine: str, expected: str
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": multiplies})
    settings = job_settings.model_copy(update={"base_storage": served, "engine": engine})
    assert storage_of_job(settings) == "float32"  # as the settings say
    assert storage_of_job(settings.model_copy(update={"refine_storage": "auto"})) == expected


def test_a_job_maps_the_file_of_the_service(
    job: JobRecord, job_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = job_settings.model_copy(update={"refine_storage": "int8_mapped"})
    load_base(str(settings.base), storage="int8", int8_folder=settings.cache_dir / INT8_FOLDER)

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("the float weights are read")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", refuse)
    done = work(job, settings)
    assert (done.status, done.error) == ("succeeded", None)


def test_a_result_that_cannot_be_noted_leaves_no_adapter_no_name_and_no_losses(
    job: JobRecord, job_settings: Settings
) -> None:
    path: Path = job_settings.store_dir / FOLDER / "jobs.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute(
            "CREATE TRIGGER refuse BEFORE UPDATE ON job WHEN NEW.status = 'succeeded'"
            " BEGIN SELECT RAISE(ABORT, 'no room'); END"
        )
    connection.close()
    failed = work(job, job_settings)
    assert (failed.status, failed.error_code, failed.adapter) == ("failed", "internal_error", None)
    assert results(job_settings) == []
    assert [entry.name for entry in job_settings.store_dir.iterdir()] == [FOLDER]
