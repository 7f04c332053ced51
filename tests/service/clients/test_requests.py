"""Fields of /v1/chat/completions: supported, ignored as harmless, or refused by name."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest

from llgbm.base import Base
from llgbm.decoding.decoder import generate
from llgbm.decoding.sampling import SamplingParams
from service.schemas.chat_completion import IGNORED, REFUSED, ChatCompletionRequest
from service.schemas.messages import IGNORED_IN_MESSAGES, Message
from tests.service.clients.conftest import BASE, USER, ask, refusal, text_of
from tests.service.support.harness import LiveServer

ENDLESS = {str(token): -100.0 for token in range(128, 259)}
"""Biases that make the tiny base write endlessly in ASCII, one character per token."""


@pytest.mark.parametrize("stream", [False, True])
def test_adapter_id_means_what_it_means_in_chat(client: httpx.Client, french: str, stream: bool) -> None:
    plain = text_of(ask(client))
    expected = text_of(ask(client, model=french))
    assert expected != plain
    for name in (french, "french"):
        if stream:
            lines = ask(client, adapter_id=name, stream=True).text.split("\n\n")
            chunks = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
            text = "".join(choice["delta"].get("content", "") for c in chunks for choice in c["choices"])
            assert {chunk["adapter_id"] for chunk in chunks} == {french}
        else:
            text = text_of(ask(client, adapter_id=name))
        assert text == expected
    assert refusal(ask(client, adapter_id="nobody", stream=stream), 404)[0] == "adapter_id"
    assert refusal(ask(client, model="french", adapter_id="other", stream=stream))[0] == "adapter_id"
    assert text_of(ask(client, model="french", adapter_id="french")) == expected
    assert text_of(ask(client, adapter_id=None)) == plain


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "name", ["adapter_name", "lora", "lora_path", "lora_request", "lora_adapter", "adapters", "LoRA_id", "peft_model"]
)
def test_an_adapter_in_another_field_is_refused_by_name(client: httpx.Client, name: str, stream: bool) -> None:
    param, words = refusal(ask(client, stream=stream, **{name: "french"}))
    assert param == name
    assert "`model` takes the adapter" in words


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_done_is_refused_by_name_but_for_what_changes_nothing(client: httpx.Client, name: str) -> None:
    param, words = refusal(ask(client, **{name: {"some": "value"}}))
    assert param == name
    assert REFUSED[name].instead in words
    for value in (None, *REFUSED[name].neutral):
        assert ask(client, max_tokens=1, **{name: value}).status_code == 200


def test_what_is_harmless_changes_nothing(client: httpx.Client) -> None:
    plain = text_of(ask(client))
    assert text_of(ask(client, **dict.fromkeys(IGNORED, "anything"))) == plain
    message = {**USER[0], **dict.fromkeys(IGNORED_IN_MESSAGES, "anything")}
    assert text_of(ask(client, messages=[message])) == plain
    assert text_of(ask(client, unheard_of=None)) == plain


def test_no_field_is_in_two_lists() -> None:
    lists = (set(ChatCompletionRequest.model_fields), set(IGNORED), set(REFUSED))
    assert sum(map(len, lists)) == len(set.union(*lists))
    assert not set(Message.model_fields) & set(IGNORED_IN_MESSAGES)


def test_every_field_of_openais_client_has_its_place() -> None:
    """Fails for a new field of the client, which must be supported, listed as harmless or refused with a hint."""
    from openai.types.chat.completion_create_params import CompletionCreateParamsBase

    known = {*ChatCompletionRequest.model_fields, *IGNORED, *REFUSED}
    assert set(CompletionCreateParamsBase.__annotations__) - known == set()


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"stop": 5}, "stop"),
        ({"stop": ["a", 5]}, "stop.1"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": None}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
        ({"messages": [*USER, {"role": "user", "content": [{"type": "text"}]}]}, "messages.1.content.0.text"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content.0.type"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": "x", "weight": 0}]}, "messages.0.weight"),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": [{"function": {"name": "f", "arguments": ""}}]}]},
         "messages.0.tool_calls"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]},
         "messages.0.tool_calls.0.function.arguments"),
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": None}, "messages"),
        ({"response_format": "json"}, "response_format"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "text", "json_schema": {"schema": {}}}}, "response_format.json_schema"),
        ({"response_format": {"type": "text", "schema": {}}}, "response_format.schema"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"continuous_usage_stats": True}}, "stream_options.continuous_usage_stats"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logit_bias": {"300": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5"),
        ({"logit_bias": {"x": 1}}, "logit_bias.x"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": -2}, "max_completion_tokens"),
        ({"n": 1000}, "n"),
        ({"temperature": 3}, "temperature"),
        ({"top_p": -1}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"min_p": 2}, "min_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"continue_final_message": True}, "continue_final_message"),
        ({"messages": [*USER, {"role": "assistant", "content": "a"}], "continue_final_message": True,
          "add_generation_prompt": True}, "add_generation_prompt"),
        ({"temprature": 0}, "temprature"),
        ({"model": ""}, "model"),
    ],
)  # fmt: skip
def test_a_refusal_blames_one_field_by_its_path(client: httpx.Client, body: dict[str, Any], param: str) -> None:
    blamed, words = refusal(ask(client, **body))
    assert blamed == param
    assert not any(
        mark in f"{blamed} {words}" for mark in (".str", "list[", "dict[", "function-", "Input should be None")
    )


def test_one_message_for_a_field_that_may_have_two_forms(client: httpx.Client) -> None:
    assert refusal(ask(client, stop=5))[1] == "stop: Input should be a valid string or a valid list"


def test_top_k_one_and_a_min_p_of_one_and_a_top_p_of_zero_are_greedy(client: httpx.Client) -> None:
    greedy = text_of(ask(client))
    drawn = {text_of(ask(client, temperature=2, seed=seed)) for seed in range(4)}
    assert len(drawn) > 1
    for more in ({"top_k": 1}, {"min_p": 1}, {"top_p": 0}):
        assert {text_of(ask(client, temperature=2, seed=seed, **more)) for seed in range(3)} == {greedy}
    same = {"top_k": -1, "min_p": 0, "repetition_penalty": 1, "presence_penalty": 0, "frequency_penalty": 0.0}
    assert text_of(ask(client, temperature=2, seed=1, **same)) == text_of(ask(client, temperature=2, seed=1))


@pytest.mark.parametrize("more", [{"frequency_penalty": 2}, {"presence_penalty": 2}, {"repetition_penalty": 1.8}])
def test_penalties_are_those_of_the_library_and_lessen_repetition(
    client: httpx.Client, tiny_base: Base, more: dict[str, float]
) -> None:
    from llgbm.chat import prompt_ids

    answer = ask(client, max_tokens=60, logit_bias=ENDLESS, **more)
    bias = tuple((int(token), value) for token, value in ENDLESS.items())
    params = SamplingParams(max_tokens=60, logit_bias=bias, **more)  # type: ignore[arg-type]
    (expected,) = generate(tiny_base, [prompt_ids(tiny_base.tokenizer, USER)], None, params)
    assert answer.json()["usage"]["completion_tokens"] == 60
    assert text_of(answer) == tiny_base.tokenizer.decode(expected)
    free = generate(
        tiny_base, [prompt_ids(tiny_base.tokenizer, USER)], None, SamplingParams(max_tokens=60, logit_bias=bias)
    )
    assert len(set(expected)) > len(set(free[0]))


def test_the_answer_goes_on_from_the_assistants_last_message(client: httpx.Client) -> None:
    whole = text_of(ask(client, max_tokens=12, logit_bias=ENDLESS))
    messages = [*USER, {"role": "assistant", "content": whole[:4]}]
    more: dict[str, Any] = {"messages": messages, "max_tokens": 8, "logit_bias": ENDLESS}
    rest = text_of(ask(client, continue_final_message=True, add_generation_prompt=False, **more))
    assert rest == whole[4:]
    assert text_of(ask(client, continue_final_message=True, **more)) == rest
    assert text_of(ask(client, **more)) != rest


def test_without_a_generation_prompt_there_is_no_head_of_a_turn(client: httpx.Client) -> None:
    count = [ask(client, add_generation_prompt=value).json()["usage"]["prompt_tokens"] for value in (True, None, False)]
    # one token for the marker, and one for each other character
    assert count[0] == count[1] == count[2] + len("<assistant\n")


CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"town": "Zürich"}'}}


@pytest.mark.parametrize("content", [{"content": None}, {}, {"content": ""}])
def test_calls_of_tools_and_their_results_are_rendered(client: httpx.Client, content: dict[str, Any]) -> None:
    called = {"role": "assistant", "tool_calls": [CALL], **content}
    result = {"role": "tool", "tool_call_id": "call_1", "content": "rain"}
    answer = ask(client, messages=[*USER, called, result, *USER])
    text_of(answer)
    used = answer.json()["usage"]["prompt_tokens"]
    longer = {"role": "tool", "tool_call_id": "call_1", "content": "rain and more"}
    assert ask(client, messages=[*USER, called, longer, *USER]).json()["usage"]["prompt_tokens"] == used + 9
    older = {"role": "assistant", "content": None, "function_call": CALL["function"]}
    told = {"role": "function", "name": "weather", "content": "rain"}
    assert ask(client, messages=[*USER, older, told, *USER]).json()["usage"]["prompt_tokens"] == used


def test_openais_own_objects_come_back_as_messages(server: LiveServer) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        first = client.chat.completions.create(model=BASE, messages=USER, max_tokens=4)
        said: Any = first.choices[0].message.model_dump()
        again = client.chat.completions.create(model=BASE, messages=[*USER, said, *USER], max_tokens=4)
    assert again.choices[0].message.content is not None


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_max_tokens_is_cut_at_what_the_context_has_left(client: httpx.Client, name: str) -> None:
    long = [{"role": "user", "content": "x" * 3950}]
    for wanted in (4096, 10**9, -1):
        answer = ask(client, messages=long, **{"max_tokens": None, name: wanted}, logit_bias=ENDLESS)
        usage = answer.json()["usage"]
        assert usage["total_tokens"] == 4096
        assert answer.json()["choices"][0]["finish_reason"] == "length"


def test_a_prompt_that_does_not_fit_is_refused_in_words_that_clients_know(client: httpx.Client) -> None:
    answer = ask(client, messages=[{"role": "user", "content": "x" * 5000}])
    param, words = refusal(answer)
    assert "maximum context length is 4096 tokens" in words
    assert (param, answer.json()["error"]["code"]) == ("messages", "context_length_exceeded")


@pytest.mark.real
def test_the_real_template_renders_calls_and_results(real_base: Base) -> None:
    from llgbm.chat import prompt_ids

    called = Message.model_validate({"role": "assistant", "content": None, "tool_calls": [CALL]})
    result = Message.model_validate({"role": "tool", "tool_call_id": "call_1", "content": "rain"})
    text = real_base.tokenizer.decode(prompt_ids(real_base.tokenizer, [*USER, called.turn, result.turn]))
    assert '<tool_call>\n{"name": "weather", "arguments": {"town": "Zürich"}}\n</tool_call>' in text
    assert "<tool_response>\nrain\n</tool_response>" in text
