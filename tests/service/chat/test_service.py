from __future__ import annotations

import dataclasses
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from service.chat.service import ChatOptions
from service.errors import ApiError
from service.schemas.messages import Message
from tests.service.support.dummy_decoder import DummyDecoder
from tests.service.support.harness import services_of

App = tuple[FastAPI, httpx.AsyncClient]


async def test_a_token_alone_has_its_bytes_and_a_special_one_its_name(dummy_app: App) -> None:
    services = services_of(dummy_app[0])
    tokenizer = services.models.base.tokenizer
    text = "aé€ \n😀"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    raw = b"".join(bytes(services.chat.token_text(token)[1] or ()) for token in ids)
    assert raw.decode() == text
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert services.chat.token_text(end) == ("<|im_end|>", list(b"<|im_end|>"))
    assert services.chat.token_text(10**6) == ("", None)


async def test_a_developer_is_a_system_to_the_template(dummy_app: App, dummy: DummyDecoder) -> None:
    chat = services_of(dummy_app[0]).chat
    for role in ("developer", "system"):
        messages: list[Any] = [{"role": role, "content": "be brief"}, {"role": "user", "content": "x"}]
        turns = [Message.model_validate(message).turn for message in messages]
        generation = await chat.start("prompt:a task", ChatOptions(messages=turns))
        await generation.answers()
    assert dummy.added[0].prompt == dummy.added[1].prompt


async def test_the_default_length_is_what_is_left_of_the_context(dummy_app: App, dummy: DummyDecoder) -> None:
    chat = services_of(dummy_app[0]).chat
    await (await chat.start("prompt:a task", ChatOptions(messages=[{"role": "user", "content": "x"}]))).answers()
    assert dummy.added[-1].params.max_tokens == 256
    long = "x" * (chat.max_context - 200)
    await (await chat.start("prompt:a task", ChatOptions(messages=[{"role": "user", "content": long}]))).answers()
    row = dummy.added[-1]
    assert len(row.prompt) + row.params.max_tokens == chat.max_context
    for wanted in (256, 10**6, -1):
        options = ChatOptions(messages=[{"role": "user", "content": long}], max_tokens=wanted)
        await (await chat.start("prompt:a task", options)).answers()
        assert dummy.added[-1].params == dataclasses.replace(row.params, seed=dummy.added[-1].params.seed)
    with pytest.raises(ApiError, match="maximum context length is 4096 tokens") as caught:
        await chat.start("prompt:a task", ChatOptions(messages=[{"role": "user", "content": long * 2}]))
    assert caught.value.code == "context_length_exceeded"


async def test_a_generation_that_is_closed_early_frees_its_rows_and_its_adapter(
    dummy_app: App, dummy: DummyDecoder
) -> None:
    services = services_of(dummy_app[0])
    dummy._script = lambda row: [65] * 10_000
    dummy.step_seconds = 0.005
    options = ChatOptions(messages=[{"role": "user", "content": "x"}], choices=3, max_tokens=3000)
    generation = await services.chat.start("prompt:a task", options)
    async for piece in generation.pieces():
        if piece.index == 2:
            break
    generation.close()
    generation.close()
    while services.engine.rows:
        await (await services.chat.start(services.models.base.spec.base_id, options_of_one())).answers()
    assert set(services.store.resident.values()) == {0}
    assert len(dummy.removed) >= 3


def options_of_one() -> ChatOptions:
    return ChatOptions(messages=[{"role": "user", "content": "x"}], max_tokens=1)


async def test_a_refused_start_holds_no_reference(dummy_app: App, dummy: DummyDecoder) -> None:
    services = services_of(dummy_app[0])
    identity = (await services.adapters.get_or_make(services.adapters.request(("a task",)))).record.id
    await services.engine.stop()
    with pytest.raises(ApiError) as caught:
        await services.chat.start(identity, options_of_one())
    assert caught.value.status_code == 503
    assert services.store.resident == {identity: 0}
