"""The service with each engine over a real socket: the same bodies, streams, counts and errors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from llgbm.base import Base, load_bare_base
from llgbm.prompting import AdapterMaker
from service.models.loading import LoadModels, Models, Progress, embedding_cache
from service.observability.metrics import Metrics
from service.settings import Settings
from tests.service.support.engine_rigs import fake_for
from tests.service.support.fake_vllm import FakeVLLM
from tests.service.support.harness import LiveServer, live, make_settings, services_of, wait_until

BASE = "llgbm/tiny-random-qwen2"
FRENCH, UPPER = "prompt:Translate the English word to French.", "prompt:Write the word in upper case."
USER: Any = [{"role": "user", "content": "cheese"}]


@pytest.fixture(params=["torch", "vllm"])
def engine(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def fake(engine: str, tiny_base_path: Path) -> Iterator[FakeVLLM | None]:
    if engine == "torch":
        yield None
        return
    server = fake_for(tiny_base_path).start()
    yield server
    server.stop()


@pytest.fixture
def server(
    fake: FakeVLLM | None, tmp_path: Path, load_tiny: LoadModels, tiny_base_path: Path, tiny_maker: AdapterMaker
) -> Iterator[LiveServer]:
    def load_bare(settings: Settings, metrics: Metrics, progress: Progress) -> Models:
        return Models(load_bare_base(tiny_base_path), tiny_maker, None, 4096, embedding_cache(settings, metrics))

    if fake is None:
        settings, load = make_settings(tmp_path), load_tiny
    else:
        settings, load = make_settings(tmp_path, engine="vllm", vllm_url=fake.url, vllm_check_seconds=0.05), load_bare
    with live(settings, load) as served:
        yield served


@pytest.fixture
def client(server: LiveServer) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def ask(client: OpenAI, model: str, **more: Any) -> Any:
    body: dict[str, Any] = {"messages": USER, "max_tokens": 8, "temperature": 0, **more}
    return client.chat.completions.create(model=model, **body)


def test_answers_are_those_of_the_base_and_of_each_adapter(client: OpenAI, server: LiveServer, tiny_base: Base) -> None:
    alone = {"context": "none"}
    answers = [ask(client, m, extra_body=alone).choices[0].message.content for m in (BASE, FRENCH, UPPER)]
    assert len(set(answers)) == 3
    body = {"prompt": FRENCH.removeprefix("prompt:"), "messages": USER, "max_tokens": 8, "compare_base": True, **alone}
    chat = httpx.post(f"{server.url}/chat", json=body).json()
    assert [chat["base_answer"], chat["answer"]] == answers[:2]
    assert chat["modules_hooked"] == 7 * tiny_base.spec.num_layers
    assert chat["usage"]["total_tokens"] == chat["usage"]["prompt_tokens"] + chat["usage"]["completion_tokens"]
    wait_until(lambda: services_of(server.app).decoding.rows == 0)


@pytest.mark.parametrize("more", [{}, {"n": 3}, {"logprobs": True, "top_logprobs": 2}, {"temperature": 0.8}])
def test_a_stream_adds_up_to_the_whole_answer(client: OpenAI, more: dict[str, Any]) -> None:
    whole = ask(client, FRENCH, seed=1, **more)
    texts, reasons = [""] * len(whole.choices), [""] * len(whole.choices)
    tokens, usage = 0, None
    for chunk in ask(client, FRENCH, seed=1, stream=True, stream_options={"include_usage": True}, **more):
        usage = chunk.usage or usage
        assert chunk.adapter_id == whole.adapter_id
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
            tokens += len(choice.logprobs.content) if choice.logprobs else 0
    assert texts == [choice.message.content for choice in whole.choices]
    assert reasons == [choice.finish_reason for choice in whole.choices]
    assert usage is not None
    # of the same prompt, more is known the second time
    assert usage.to_dict() | {"prompt_tokens_details": None} == whole.usage.to_dict() | {"prompt_tokens_details": None}
    assert tokens == (8 if "logprobs" in more else 0)


def test_a_stop_string_ends_the_answer_before_it(client: OpenAI) -> None:
    text = ask(client, FRENCH, max_tokens=30).choices[0].message.content
    stopped = ask(client, FRENCH, max_tokens=30, stop=[text[4:6]]).choices[0]
    assert (stopped.message.content, stopped.finish_reason) == (text[: text.index(text[4:6])], "stop")


def test_samplers_and_schemas_reach_what_decodes(client: OpenAI) -> None:
    free = ask(client, FRENCH).choices[0].message.content
    for more in ({"top_k": 1}, {"min_p": 1.0}):
        assert ask(client, FRENCH, temperature=2, extra_body=more).choices[0].message.content == free
    assert ask(client, FRENCH, temperature=2, top_p=0).choices[0].message.content == free
    other = ask(client, FRENCH, logit_bias={str(token): -100 for token in range(97, 123)}).choices[0].message.content
    assert not set(other) & set("abcdefghijklmnopqrstuvwxyz")
    schema = {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 2}
    form = {"type": "json_schema", "json_schema": {"name": "two", "schema": schema}}
    text = ask(client, FRENCH, response_format=form, max_tokens=300).choices[0].message.content
    assert [type(item) for item in json.loads(text)] == [bool, bool]


def test_errors_are_raised_as_openais(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        ask(client, "nobody")
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, FRENCH, messages=[{"role": "user", "content": "x" * 5000}])
    assert caught.value.code == "context_length_exceeded"


def test_a_client_that_hangs_up_frees_its_rows(client: OpenAI, server: LiveServer, fake: FakeVLLM | None) -> None:
    stream = ask(client, FRENCH, max_tokens=3000, n=2, stream=True)
    next(iter(stream))
    stream.close()
    wait_until(lambda: services_of(server.app).decoding.rows == 0, seconds=10)
    if fake is not None:
        wait_until(lambda: fake.running == 0)


def test_readiness_says_whether_anything_decodes(server: LiveServer, client: OpenAI, fake: FakeVLLM | None) -> None:
    assert httpx.get(f"{server.url}/readyz").json()["status"] == "ready"
    if fake is None:
        return
    fake.stop()
    wait_until(lambda: httpx.get(f"{server.url}/readyz").status_code == 503)
    assert httpx.get(f"{server.url}/readyz").json()["status"] == "unavailable"
    with pytest.raises(openai.InternalServerError) as caught:
        ask(client, FRENCH)
    assert (caught.value.status_code, caught.value.code) == (503, "engine_unavailable")
    assert int(caught.value.response.headers["Retry-After"]) >= 1
    made = httpx.post(f"{server.url}/generate-adapter", json={"prompt": "Adapters are made all the same."})
    assert made.status_code == 201
    fake.start()
    wait_until(lambda: httpx.get(f"{server.url}/readyz").status_code == 200)
    assert ask(client, FRENCH).choices[0].message.content


def test_a_damaged_adapter_is_made_again(server: LiveServer, client: OpenAI, fake: FakeVLLM | None) -> None:
    made = ask(client, FRENCH)
    services = services_of(server.app)
    weights = services.store.files.path(made.adapter_id) / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\x00\x00\x00\x01")
    if fake is None:
        services.store.forget(made.adapter_id)
    else:
        fake.adapters.clear()
    assert ask(client, FRENCH).choices[0].message.content == made.choices[0].message.content
    services.store.files.read(made.adapter_id)  # raises for damaged files


def test_a_fault_of_a_server_reaches_the_client_whole_or_in_a_stream(client: OpenAI, fake: FakeVLLM | None) -> None:
    if fake is None:
        pytest.skip("only with vLLM")
    fake.fail_after = 3
    with pytest.raises(openai.InternalServerError) as whole:
        ask(client, FRENCH)
    assert (whole.value.status_code, whole.value.code) == (502, "engine_error")
    with pytest.raises(openai.APIError, match="in the middle of an answer"):
        list(ask(client, FRENCH, stream=True))
    fake.fail_after = None
    assert ask(client, FRENCH).choices[0].message.content
