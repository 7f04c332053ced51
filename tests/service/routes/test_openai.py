"""The OpenAI-compatible routes, with OpenAI's client over a real socket."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from service.models.loading import LoadModels
from tests.service.support.dummy_decoder import DummyDecoder
from tests.service.support.harness import LiveServer, live, make_settings, services_of, wait_until

BASE = "llgbm/tiny-random-qwen2"
TASK = "prompt:Translate the English word to French."
USER: Any = [{"role": "user", "content": "cheese"}]


@pytest.fixture
def server(tmp_path: Path, load_dummy: LoadModels) -> Iterator[LiveServer]:
    with live(make_settings(tmp_path), load_dummy) as served:
        yield served


@pytest.fixture
def client(server: LiveServer) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def ask(client: OpenAI, model: str = TASK, **more):  # type: ignore[no-untyped-def]
    return client.chat.completions.create(model=model, messages=USER, **more)


def test_the_base_an_adapter_a_name_and_a_prompt_are_models(client: OpenAI, server: LiveServer) -> None:
    by_prompt = ask(client)
    assert by_prompt.choices[0].message.content == "adapted answer"
    identity = by_prompt.adapter_id
    httpx.post(f"{server.url}/generate-adapter", json={"prompt": TASK.removeprefix("prompt:"), "name": "french"})
    for model in (identity, "french"):
        answer = ask(client, model)
        assert (answer.model, answer.adapter_id) == (model, identity)
        assert answer.choices[0].message.content == "adapted answer"
    plain = ask(client, BASE)
    assert plain.choices[0].message.content == "plain answer"
    assert plain.adapter_id is None
    assert plain.choices[0].finish_reason == "stop"
    assert plain.usage.completion_tokens == len("plain answer") + 1
    assert plain.usage.total_tokens == plain.usage.prompt_tokens + plain.usage.completion_tokens
    listed = {model.id: model for model in client.models.list()}
    assert set(listed) == {BASE, "auto", identity, "french"}
    for name, model in listed.items():
        assert client.models.retrieve(name) == model


def test_an_unknown_model_is_not_found_never_the_base(client: OpenAI, dummy: DummyDecoder) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        ask(client, "nobody")
    assert caught.value.code == "model_not_found"
    assert "GET /v1/models" in caught.value.message
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nobody")
    assert dummy.added == []


@pytest.mark.parametrize("more", [{}, {"n": 3}, {"max_tokens": 5}, {"stop": ["d a"]}, {"stop": "ans", "n": 2}])
def test_a_stream_adds_up_to_the_whole_answer(client: OpenAI, more: dict[str, Any]) -> None:
    whole = ask(client, seed=1, **more)
    texts = [""] * len(whole.choices)
    reasons: list[str | None] = [None] * len(whole.choices)
    usage = None
    for chunk in ask(client, seed=1, stream=True, stream_options={"include_usage": True}, **more):
        assert chunk.adapter_id == whole.adapter_id
        if not chunk.choices:
            usage = chunk.usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    assert texts == [choice.message.content for choice in whole.choices]
    assert reasons == [choice.finish_reason for choice in whole.choices]
    assert usage == whole.usage


def test_stop_max_tokens_and_their_finish_reasons(client: OpenAI) -> None:
    stopped = ask(client, stop=[" ans"]).choices[0]
    assert (stopped.message.content, stopped.finish_reason) == ("adapted", "stop")
    cut = ask(client, max_tokens=4).choices[0]
    assert (cut.message.content, cut.finish_reason) == ("adap", "length")
    newer = ask(client, max_completion_tokens=2).choices[0]
    assert newer.message.content == "ad"


def test_sampling_reaches_the_decoder_and_choices_have_seeds_of_their_own(client: OpenAI, dummy: DummyDecoder) -> None:
    ask(client, temperature=0.3, top_p=0.8, seed=10, n=3)
    params = [row.params for row in dummy.added]
    assert [p.seed for p in params] == [10, 11, 12]
    assert {(p.temperature, p.top_p) for p in params} == {(0.3, 0.8)}
    ask(client)
    assert dummy.added[-1].params.temperature == 1.0
    ask(client, temperature=0)
    assert dummy.added[-1].params.temperature == 0


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_are_given_for_every_token_of_the_text(client: OpenAI, stream: bool) -> None:
    if stream:
        chunks = ask(client, logprobs=True, top_logprobs=2, stream=True)
        content = [item for c in chunks for ch in c.choices if ch.logprobs for item in ch.logprobs.content]
    else:
        content = ask(client, logprobs=True, top_logprobs=2).choices[0].logprobs.content
    assert "".join(item.token for item in content) == "adapted answer"
    assert bytes(b for item in content for b in item.bytes) == b"adapted answer"
    assert all(item.logprob == -0.5 and len(item.top_logprobs) == 2 for item in content)
    assert ask(client).choices[0].logprobs is None


def test_content_may_come_in_parts(client: OpenAI, dummy: DummyDecoder) -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "che"}, {"type": "text", "text": "ese"}]}]
    client.chat.completions.create(model=TASK, messages=parts)  # type: ignore[arg-type]
    ask(client)
    assert dummy.added[0].prompt == dummy.added[1].prompt


@pytest.mark.parametrize(
    "more",
    [
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"functions": [{"name": "f"}]},
        {"function_call": {"name": "f"}},
        {"modalities": ["text", "audio"]},
        {"audio": {"voice": "alloy", "format": "wav"}},
        {"response_format": {"type": "xml"}},
        {"presence_penalty": 2.5},
        {"logit_bias": {"5": 1000}},
        {"top_logprobs": 2},
        {"temperature": 3},
        {"n": 0},
        {"n": 1000},
        {"stop": [""]},
        {"logprobs": True, "top_logprobs": 21},
        {"messages": []},
    ],
)
def test_what_is_not_understood_is_refused_not_ignored(server: LiveServer, more: dict[str, Any]) -> None:
    answer = httpx.post(f"{server.url}/v1/chat/completions", json={"model": TASK, "messages": USER, **more})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_fields_of_openai_that_change_nothing_are_taken(client: OpenAI) -> None:
    same: dict[str, Any] = {
        "presence_penalty": 0,
        "response_format": {"type": "text"},
        "modalities": ["text"],
        "function_call": "none",
    }
    answer = ask(client, user="someone", store=False, stream=None, **same)
    assert answer.choices[0].message.content == "adapted answer"


def test_an_error_in_the_middle_of_a_stream_is_an_event_and_the_client_raises_it(
    client: OpenAI, server: LiveServer, dummy: DummyDecoder
) -> None:
    dummy.hold.clear()
    stream = ask(client, stream=True)
    received = next(iter(stream))
    assert received.choices[0].delta.role == "assistant"
    dummy.fail_step = RuntimeError("secret inside")
    dummy.hold.set()
    with pytest.raises(openai.APIError, match="inside the service"):
        list(stream)
    dummy.fail_step = RuntimeError("again")
    body = {"model": TASK, "messages": USER, "stream": True}
    raw = httpx.post(f"{server.url}/v1/chat/completions", json=body)
    events = raw.text.strip().split("\n\n")
    assert events[-1] == "data: [DONE]"
    envelope = json.loads(events[-2].removeprefix("data: "))
    assert envelope["error"]["code"] == "internal_error"
    assert envelope["request_id"] == raw.headers["X-Request-ID"]
    assert "again" not in raw.text


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_hangs_up_frees_its_row_and_its_adapter_within_a_token(
    server: LiveServer, dummy: DummyDecoder, stream: bool
) -> None:
    services = services_of(server.app)
    endless = [65] * 100_000
    dummy._script = lambda row: list(endless)
    dummy.step_seconds = 0.01
    body = {"model": TASK, "messages": USER, "stream": stream, "max_tokens": 3000}
    httpx.post(f"{server.url}/generate-adapter", json={"prompt": TASK.removeprefix("prompt:")}, timeout=60)
    with httpx.Client(timeout=3.0) as client:
        if stream:
            with client.stream("POST", f"{server.url}/v1/chat/completions", json=body) as answer:
                # kept, because httpx closes the connection when a started iterator is garbage-collected
                lines = answer.iter_lines()
                next(lines)
                wait_until(lambda: len(dummy.rows) == 1, seconds=5)  # the first line arrives before the row has joined
        else:
            with pytest.raises(httpx.ReadTimeout):
                client.post(f"{server.url}/v1/chat/completions", json=body)
    wait_until(lambda: services.engine.rows == 0, seconds=5)
    wait_until(lambda: set(services.store.resident.values()) == {0}, seconds=5)
    assert dummy.rows == []
    assert len(dummy.removed) == 1


def test_a_client_that_hangs_up_while_it_waits_leaves_the_queue(server: LiveServer, dummy: DummyDecoder) -> None:
    dummy.hold.clear()
    services = services_of(server.app)
    body = {"model": BASE, "messages": USER, "stream": True}
    with httpx.Client(timeout=20) as client:
        for _ in range(20):
            with client.stream("POST", f"{server.url}/v1/chat/completions", json=body):
                pass
    dummy.hold.set()
    wait_until(lambda: services.engine.rows == 0, seconds=10)
    answer = httpx.post(f"{server.url}/v1/chat/completions", json={**body, "stream": False})
    assert answer.json()["choices"][0]["message"]["content"] == "plain answer"
