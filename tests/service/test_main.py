"""The process: it starts, serves, and drains at SIGTERM."""

from __future__ import annotations

import json
import signal
import string
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from llgbm.base import Base
from llgbm.chat import prompt_ids
from llgbm.decoding.decoder import generate
from llgbm.decoding.sampling import SamplingParams
from tests.service.support.harness import wait_until
from tests.service.support.process import Process


@pytest.fixture
def process(tmp_path: Path, tiny_checkpoint_path: Path, tiny_base_path: Path) -> Iterator[Process]:
    process = Process(
        tmp_path, tiny_checkpoint_path, tiny_base_path, DRAIN_SECONDS="2", REQUEST_TIMEOUT="100", BASE_STORAGE="float32"
    )
    yield process
    process.end()


def endless_question(base: Base) -> str:
    """A question whose greedy answer by the tiny base has more than 300 tokens."""
    questions = [letter * 3 for letter in string.ascii_lowercase]
    prompts = [prompt_ids(base.tokenizer, [{"role": "user", "content": question}]) for question in questions]
    answers = generate(base, prompts, params=SamplingParams(max_tokens=300))
    return next(question for question, answer in zip(questions, answers, strict=True) if len(answer) == 300)


@contextmanager
def endless_answer(process: Process, base: Base) -> Iterator[list[str]]:
    """The lines of a streamed answer, added as they arrive. There is one at the start, and all after the block."""
    # takes longer than the drain, because the greedy answer of the base repeats itself
    long = {
        "model": base.spec.base_id,
        "messages": [{"role": "user", "content": endless_question(base)}],
        "max_tokens": 3900,
        "temperature": 0,
        "stream": True,
    }
    events: list[str] = []
    first = threading.Event()

    def read() -> None:
        with httpx.stream("POST", f"{process.url}/v1/chat/completions", json=long, timeout=60) as stream:
            for line in stream.iter_lines():
                if line:
                    events.append(line)
                    first.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    assert first.wait(60)
    yield events
    reader.join(60)


def ending(events: list[str]) -> tuple[object, str]:
    """The code of the error at the end of a stream, and its last line."""
    *_, last, done = events
    return json.loads(last.removeprefix("data: ")).get("error", {}).get("code"), done


def test_it_serves_the_main_path_and_drains_at_sigterm(process: Process, tiny_base: Base) -> None:
    process.wait_ready()
    made = httpx.post(f"{process.url}/generate-adapter", json={"prompt": "Reverse the letters."}, timeout=60)
    assert made.status_code == 201
    body = {"adapter_id": made.json()["id"], "query": "abc", "max_tokens": 8, "compare_base": True}
    answer = httpx.post(f"{process.url}/chat", json=body, timeout=60).json()
    assert answer["modules_hooked"] == 14

    # one client, created before: draining takes two seconds, and a busy machine may need longer to create another
    with httpx.Client(base_url=process.url, timeout=60) as client, endless_answer(process, tiny_base) as events:
        process.popen.send_signal(signal.SIGTERM)
        wait_until(lambda: client.get("/readyz").json()["status"] == "draining", seconds=10)
        refused = client.post("/chat", json=body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
    assert process.popen.wait(30) in (0, -signal.SIGTERM)
    assert ending(events) == ("draining", "data: [DONE]")
    assert {"ready", "draining", "drain_deadline"} <= set(process.events())


def test_a_second_signal_ends_at_once_what_runs(
    tmp_path: Path, tiny_checkpoint_path: Path, tiny_base_path: Path, tiny_base: Base
) -> None:
    process = Process(
        tmp_path,
        tiny_checkpoint_path,
        tiny_base_path,
        DRAIN_SECONDS="200",
        REQUEST_TIMEOUT="300",
        BASE_STORAGE="float32",
    )
    try:
        process.wait_ready()
        with endless_answer(process, tiny_base) as events:
            process.popen.send_signal(signal.SIGTERM)
            wait_until(lambda: process.status() == "draining", seconds=10)
            process.popen.send_signal(signal.SIGTERM)
        assert process.popen.wait(30) in (0, -signal.SIGTERM)
        assert ending(events) == ("draining", "data: [DONE]")
    finally:
        process.end()


def test_an_idle_process_stops_at_once(process: Process) -> None:
    process.wait_ready()
    process.popen.send_signal(signal.SIGINT)
    assert process.popen.wait(30) in (0, -signal.SIGINT)


def test_a_process_that_still_loads_stops_too(process: Process) -> None:
    wait_until(lambda: process.status() != "silent", seconds=60)
    process.popen.send_signal(signal.SIGTERM)
    assert process.popen.wait(30) in (0, -signal.SIGTERM)


def test_without_a_generator_it_ends_with_status_1_and_says_why(tmp_path: Path, tiny_base_path: Path) -> None:
    process = Process(tmp_path, tmp_path / "nothing", tiny_base_path)
    try:
        assert process.popen.wait(240) == 1
        assert "no generator in" in process.log.read_text()
    finally:
        process.end()


def test_a_refused_setting_ends_it_with_status_2_and_a_line_that_names_it(tmp_path: Path, tiny_base_path: Path) -> None:
    wrong = {"REDIS_TIMEOUT": "soon-and-secret", "CORS_ORIGINS": "https://page.example/app"}
    process = Process(tmp_path, tmp_path / "nothing", tiny_base_path, **wrong)
    try:
        assert process.popen.wait(240) == 2
        first, second = process.log.read_text().splitlines()
        assert first.startswith("LLGBM_CORS_ORIGINS: ")
        assert second.startswith("LLGBM_REDIS_TIMEOUT: ")
        assert "secret" not in second
    finally:
        process.end()
