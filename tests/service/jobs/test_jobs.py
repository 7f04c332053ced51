"""Fine-tuning jobs with OpenAI's client: from a file of examples to an adapter in a chat."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from itertools import pairwise
from typing import Any

import httpx
import openai
import pytest
import torch
from openai.types.fine_tuning import FineTuningJob

from llgbm.adapters.peft_io import load_peft
from llgbm.base import Base
from llgbm.refining.refine import refine
from llgbm.refining.settings import RefineConfig, RefineRow
from service.jobs.database import FOLDER
from service.jobs.examples import write_examples
from service.models.loading import load_models
from service.settings import Settings
from tests.service.support.harness import LiveServer, live, services_of, wait_until
from tests.service.support.jobs import LONG, epochs, workers

BASE = "llgbm/tiny-random-qwen2"
TASK = "Route the ticket to a team."
SECRET = "the card of a user was stolen"
PAIRS = [(SECRET, "fraud"), ("my money", "billing"), ("it is slow", "support"), ("I want out", "sales")]


def upload(api: openai.OpenAI, pairs: list[tuple[str, str]] = PAIRS) -> str:
    return api.files.create(file=("tickets.jsonl", write_examples(pairs)), purpose="fine-tune").id


def many(count: int) -> list[tuple[str, str]]:
    return [(f"ticket {number} {'x' * (number % 7)}", PAIRS[number % 4][1]) for number in range(count)]


def finished(api: openai.OpenAI, job: str, seconds: float = 200) -> FineTuningJob:
    deadline = time.monotonic() + seconds
    while (found := api.fine_tuning.jobs.retrieve(job)).status in ("queued", "running"):
        assert time.monotonic() < deadline, found
        time.sleep(0.1)
    return found


def at_step(api: openai.OpenAI, job: str, step: int, seconds: float = 200) -> None:
    def there() -> bool:
        found = api.fine_tuning.jobs.retrieve(job)
        assert found.status in ("queued", "running"), found
        return int((found.model_extra or {})["step"]) >= step

    wait_until(there, seconds)


def test_from_a_file_to_an_adapter_like_any_other(
    api: openai.OpenAI,
    server: LiveServer,
    job_settings: Settings,
    tiny_base: Base,
    capfd: pytest.CaptureFixture[str],
) -> None:
    file = upload(api)
    job = api.fine_tuning.jobs.create(
        model=f"prompt:{TASK}", training_file=file, suffix="tickets", seed=3, metadata={"a": "b"}
    )
    assert job.status == "queued"
    assert job.metadata == {"a": "b"}
    done = finished(api, job.id)
    assert done.status == "succeeded", done
    adapter = done.fine_tuned_model
    assert adapter is not None

    # exactly the library's result
    start = services_of(server.app).store.files.read((done.model_extra or {})["start"])
    rows = [RefineRow.of(given, wanted) for given, wanted in PAIRS]
    expected = refine(tiny_base, start, rows, RefineConfig(description=TASK, seed=3))
    weights, base = load_peft(job_settings.store_dir / adapter)
    assert base == BASE
    torch.testing.assert_close(weights.tensors, expected.weights.tensors, atol=1e-4, rtol=0)

    # a normal adapter, with its id and its name
    name = f"tickets-{job.id[-8:]}"
    assert adapter in [model.id for model in api.models.list()]
    messages: Any = [{"role": "user", "content": SECRET}]
    answers = {
        api.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=8)
        .choices[0]
        .message.content
        for model in (adapter, name)
    }
    assert len(answers) == 1
    with httpx.Client(base_url=server.url, timeout=60) as client:
        shown = client.get(f"/adapters/{name}").json()
        assert (shown["source"], shown["prompts"], shown["examples"]) == ("refined", [TASK], [])
        assert client.get(shown["links"]["archive"]).status_code == 200
        composed = client.post("/adapters/compose", json={"ids": [adapter, name], "weights": [1, -0.5]})
        assert composed.status_code == 201, composed.text
        wait_until(lambda: "llgbm_job_seconds_count 1.0" in client.get("/metrics").text)  # its process ends
        told = client.get("/metrics").text
        assert 'llgbm_jobs_ended_total{status="succeeded"} 1.0' in told
        (loss,) = re.findall(r"^llgbm_job_loss (\S+)$", told, flags=re.MULTILINE)
        assert float(loss) == pytest.approx(expected.losses[-1], abs=1e-4)

    # its events
    events = list(api.fine_tuning.jobs.list_events(job.id, limit=3))
    assert events == list(api.fine_tuning.jobs.list_events(job.id))
    losses = [event.data["train_loss"] for event in reversed(events) if event.type == "metrics"]  # type: ignore[index]
    assert losses == pytest.approx(expected.losses, abs=1e-4)
    assert losses[-1] < losses[0]
    (results,) = done.result_files
    lines = api.files.content(results).text.splitlines()
    assert lines[0] == "step,train_loss"
    assert [float(line.split(",")[1]) for line in lines[1:]] == losses
    with pytest.raises(openai.BadRequestError) as error:  # a file of another purpose
        api.fine_tuning.jobs.create(model=BASE, training_file=results)
    assert error.value.param == "training_file"
    assert "fine-tune-results" in error.value.message

    # the same job gives the same adapter again; deleting the file deletes the examples
    assert (
        finished(
            api, api.fine_tuning.jobs.create(model=f"prompt:{TASK}", training_file=file, seed=3).id
        ).fine_tuned_model
        == adapter
    )
    api.files.delete(file)
    for path in job_settings.store_dir.rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path
    printed = capfd.readouterr()
    assert SECRET not in printed.out + printed.err
    assert [job.id for job in api.fine_tuning.jobs.list(limit=1)][-1] == job.id
    assert list((job_settings.store_dir / FOLDER).glob("*.safetensors")) == []


def test_held_out_examples_say_whether_it_helped_and_events_are_streamed(
    api: openai.OpenAI, server: LiveServer
) -> None:
    job = api.fine_tuning.jobs.create(model=BASE, training_file=upload(api, many(9)))
    with httpx.stream("GET", f"{server.url}/v1/fine_tuning/jobs/{job.id}/events?stream=true", timeout=200) as answer:
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert lines[-1] == "[DONE]"
    events = [json.loads(line) for line in lines[:-1]]
    assert [e["id"] for e in events] == [e.id for e in reversed(list(api.fine_tuning.jobs.list_events(job.id)))]
    assert {e["data"]["phase"] for e in events if e["data"]} == {"choose", "train"}
    done = finished(api, job.id)
    outcome = (done.model_extra or {})["outcome"]
    assert outcome["start"]["rows"] == outcome["refined"]["rows"] > 0
    assert outcome["better"] == (done.fine_tuned_model if outcome["helped"] else None)
    assert events[-1]["message"] == outcome["note"]
    assert "held-out accuracy" in outcome["note"]


def test_a_job_is_cancelled_within_a_step_and_nothing_of_it_is_kept(api: openai.OpenAI, job_settings: Settings) -> None:
    file = upload(api, many(100))
    running = api.fine_tuning.jobs.create(model=BASE, training_file=file, method=LONG)
    waiting = api.fine_tuning.jobs.create(model=BASE, training_file=file, method=LONG)
    at_step(api, running.id, 5)
    assert api.fine_tuning.jobs.retrieve(waiting.id).status == "queued"
    assert api.fine_tuning.jobs.cancel(waiting.id).status == "cancelled"
    assert api.fine_tuning.jobs.cancel(running.id).status == "cancelled"
    step = (api.fine_tuning.jobs.retrieve(running.id).model_extra or {})["step"]
    wait_until(lambda: not workers())
    assert (api.fine_tuning.jobs.retrieve(running.id).model_extra or {})["step"] == step
    for job in (running, waiting):
        with pytest.raises(openai.BadRequestError, match="its status is cancelled"):
            api.fine_tuning.jobs.cancel(job.id)
    assert [path.name for path in job_settings.store_dir.iterdir()] == [FOLDER]


def test_a_worker_that_is_killed_is_replaced_and_the_result_is_the_same(api: openai.OpenAI) -> None:
    file = upload(api, many(7))
    undisturbed = finished(api, api.fine_tuning.jobs.create(model=BASE, training_file=file, method=epochs(30)).id)
    job = api.fine_tuning.jobs.create(model=BASE, training_file=file, method=epochs(30))
    at_step(api, job.id, 100)
    (worker,) = workers()
    os.kill(worker, signal.SIGKILL)
    done = finished(api, job.id)
    assert (done.status, done.fine_tuned_model) == ("succeeded", undisturbed.fine_tuned_model)
    story = [event.message for event in api.fine_tuning.jobs.list_events(job.id, limit=100)]
    assert any("by signal 9" in message for message in story)
    assert any("goes on from its last checkpoint" in message for message in story)
    data: Any = [event.data for event in api.fine_tuning.jobs.list_events(job.id, limit=100) if event.data]
    steps = [each["step"] for each in reversed(data)]
    again = [after for before, after in pairwise(steps) if after <= before]
    assert all(step > 1 for step in again)  # not from the first step


def test_a_job_survives_its_service(job_settings: Settings, server: LiveServer, api: openai.OpenAI) -> None:
    file = upload(api, many(7))
    job = api.fine_tuning.jobs.create(model=BASE, training_file=file, method=epochs(30))
    at_step(api, job.id, 60)
    services_of(server.app).jobs.close()  # as at the end of a service
    assert workers() == []
    with (
        live(job_settings, load_models) as second,
        openai.OpenAI(base_url=f"{second.url}/v1", api_key="none", max_retries=0) as other,
    ):
        assert finished(other, job.id).status == "succeeded"
        story = [event.message for event in other.fine_tuning.jobs.list_events(job.id, limit=100)]
    assert any("goes on from its last checkpoint" in message for message in story)
