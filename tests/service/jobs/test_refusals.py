"""Refused jobs: 400 that names a field, 429 for a full queue; and jobs that fail with a reason."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from service.jobs.examples import write_examples
from service.models.loading import load_models
from service.settings import Settings
from tests.service.jobs.test_jobs import BASE, PAIRS, at_step, finished, many, upload
from tests.service.support.harness import LiveServer, live, services_of, wait_until
from tests.service.support.jobs import LONG, workers


@pytest.fixture
def server(job_settings: Settings) -> Iterator[LiveServer]:
    """A service with low limits."""
    limits = {"refine_rows": 101, "refine_queue": 1, "max_context": 200}
    with live(job_settings.model_copy(update=limits), load_models) as served:
        yield served


def refused(api: openai.OpenAI, **body: Any) -> tuple[str | None, str]:
    with pytest.raises(openai.BadRequestError) as error:
        api.fine_tuning.jobs.create(**body)
    return error.value.param, error.value.message


def test_bad_requests_blame_a_field(api: openai.OpenAI, server: LiveServer) -> None:
    file = upload(api)
    good: Any = {"model": BASE, "training_file": file}
    param, words = refused(api, **{**good, "model": "nobody"})
    assert (param, "nobody" in words) == ("model", True)
    assert refused(api, **{**good, "model": "prompt:"})[0] == "model"
    for field in ("training_file", "validation_file"):
        param, words = refused(api, **{**good, field: "file-of-nobody"})
        assert (param, "file-of-nobody" in words) == (field, True)
        param, words = refused(api, **{**good, field: upload(api, many(102))})
        assert (param, "102 examples" in words) == (field, True)
        too_long = upload(api, [PAIRS[0], ("word " * 300, "x")])
        param, words = refused(api, **{**good, field: too_long})
        assert (param, "line 2: it has" in words) == (field, True)
    param, words = refused(api, **{**good, "validation_file": file})
    assert (param, "it is the training file" in words) == ("validation_file", True)
    param, words = refused(api, **{**good, "model": f"prompt:{'word ' * 150}"})
    assert (param, "tokens with the description" in words) == ("training_file", True)
    assert refused(api, **{**good, "training_file": [file, file]})[0] == "training_file"
    assert refused(api, **{**good, "suffix": "two words"})[0] == "suffix"
    assert refused(api, **{**good, "seed": -1})[0] == "seed"
    assert refused(api, **{**good, "method": {"type": "dpo"}})[0] == "method.type"
    hyperparameters = {"n_epochs": 0}
    assert (
        refused(api, **{**good, "method": {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}}})[
            0
        ]
        == "method.supervised.hyperparameters.n_epochs"
    )
    assert refused(api, **{**good, "hyperparameters": {"n_epochs": 1}, "method": LONG})[0] == "hyperparameters"
    assert refused(api, **{**good, "integrations": [{"type": "wandb", "wandb": {"project": "x"}}]})[0] == "integrations"
    assert refused(api, **{**good, "extra_body": {"n_epochs": 3}})[0] == "n_epochs"
    assert list(api.fine_tuning.jobs.list()) == []
    with pytest.raises(openai.BadRequestError) as listed:  # not all jobs, as if they were those
        api.fine_tuning.jobs.list(metadata={"team": "support"})
    assert listed.value.param == "metadata"
    assert services_of(server.app).store.files.records() == []  # and no adapter was made for the start
    for call in (api.fine_tuning.jobs.retrieve, api.fine_tuning.jobs.cancel, api.fine_tuning.jobs.list_events):
        with pytest.raises(openai.NotFoundError) as error:
            call("ftjob-of-nobody")
        assert error.value.code == "job_not_found"
    events = httpx.get(f"{server.url}/v1/fine_tuning/jobs/ftjob-x/events?stream=true", timeout=60)
    assert events.status_code == 404


def test_a_full_queue_is_429_and_a_file_that_is_deleted_fails_its_job(api: openai.OpenAI, server: LiveServer) -> None:
    file, other = upload(api, many(100)), upload(api)
    first = api.fine_tuning.jobs.create(model=BASE, training_file=file, method=LONG)
    at_step(api, first.id, 1)
    second = api.fine_tuning.jobs.create(model=BASE, training_file=other)
    with pytest.raises(openai.RateLimitError) as error:
        api.fine_tuning.jobs.create(model=BASE, training_file=file)
    assert int(error.value.response.headers["Retry-After"]) > 0
    body = {"prompt": "x", "examples": [{"input": "a", "output": "b"}], "refine": True}
    assert httpx.post(f"{server.url}/generate-adapter", json=body, timeout=60).status_code == 429
    assert {each.id for each in api.files.list()} == {file, other}  # the file of the refused request was deleted
    api.files.delete(other)
    api.fine_tuning.jobs.cancel(first.id)
    failed = finished(api, second.id)
    assert failed.status == "failed"
    assert failed.error is not None
    assert (failed.error.code, other in failed.error.message) == ("file_not_found", True)
    assert failed.fine_tuned_model is None


def test_a_job_over_its_time_fails_and_frees_the_worker(job_settings: Settings) -> None:
    settings = job_settings.model_copy(update={"refine_seconds": 0.5})
    with (
        live(settings, load_models) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as api,
    ):
        job = api.fine_tuning.jobs.create(model=BASE, training_file=upload(api, many(100)), method=LONG)
        failed = finished(api, job.id)
        assert failed.error is not None
        assert (failed.status, failed.error.code) == ("failed", "time_limit")
        assert "LLGBM_REFINE_SECONDS" in failed.error.message
        wait_until(lambda: not workers(), 30)


def test_the_short_form_waits_for_the_adapter_or_answers_with_the_job(server: LiveServer, api: openai.OpenAI) -> None:
    examples = [{"input": given, "output": wanted} for given, wanted in PAIRS]
    body = {"prompt": "Route the ticket.", "examples": examples, "refine": True, "name": "tickets"}
    with httpx.Client(base_url=server.url, timeout=200) as client:
        for wrong in ({**body, "examples": None}, {"prompt": "x", "wait_s": 1}, {**body, "wait_s": -1}):
            assert client.post("/generate-adapter", json=wrong).status_code == 422
        answer = client.post("/generate-adapter", json=body)
        assert answer.status_code == 202, answer.text
        job = answer.json()
        assert answer.headers["Location"] == f"/v1/fine_tuning/jobs/{job['id']}"
        assert api.files.content(job["training_file"]).read() == write_examples(PAIRS)
        done = finished(api, job["id"])
        shown = client.get("/adapters/tickets").json()
        assert (shown["id"], shown["prompts"], shown["examples"]) == (done.fine_tuned_model, ["Route the ticket."], [])
        taken = client.post("/generate-adapter", json=body)
        assert taken.status_code == 409

        waited = client.post("/generate-adapter", json={**body, "name": None, "wait_s": 100})
        assert waited.status_code == 200
        assert waited.json()["status"] == "succeeded"
        assert waited.headers["X-Adapter-Id"] == waited.json()["fine_tuned_model"] == done.fine_tuned_model
        record = services_of(server.app).store.files.record(job["start"])
        assert record is not None
        assert record.examples == ()  # the examples are only in the job's file

        many_examples = [{"input": given, "output": wanted} for given, wanted in many(20)]
        waited = client.post("/generate-adapter", json={**body, "name": None, "examples": many_examples})
        assert waited.status_code == 202, waited.text  # more than an adapter is made of
        assert api.fine_tuning.jobs.cancel(waited.json()["id"]).status == "cancelled"
        before = {record.id for record in services_of(server.app).store.files.records()}
        for more, problem in (
            ([{"input": "word " * 300, "output": "x"}], "example 5: it has"),
            (many_examples * 5, "there are 104 examples"),
        ):
            wrong = {"prompt": "Another task.", "examples": [*examples, *more], "refine": True}
            answer = client.post("/generate-adapter", json=wrong)
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, "examples")
            assert problem in answer.json()["error"]["message"]
        assert {record.id for record in services_of(server.app).store.files.records()} == before
        answer = client.post("/generate-adapter", json={"prompt": "Another task.", "examples": many_examples})
        assert (answer.status_code, answer.json()["error"]["param"]) == (422, "examples")
        assert "at most 16 examples, not 20" in answer.json()["error"]["message"]
