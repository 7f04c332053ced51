"""OpenAI's chat completions and models, with adapters as models."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from llgbm.decoding.decoder import Step
from llgbm.decoding.sampling import SamplingParams
from service.chat.generation import Generation
from service.chat.service import AUTO_MODEL, ChatOptions, ChatService, JsonWanted
from service.http.sse import EventStream, event, while_connected
from service.schemas.adapters import pairs_of
from service.schemas.chat_completion import ChatCompletionRequest
from service.schemas.common import Usage, errors
from service.schemas.openai import (
    AssistantMessage,
    ChatCompletion,
    ChatCompletionChunk,
    Choice,
    ChunkChoice,
    Delta,
    Logprobs,
    Model,
    ModelList,
    TokenLogprob,
    TopLogprob,
)
from service.state import Ready, Services

router = APIRouter(prefix="/v1", tags=["openai"])


@router.post(
    "/chat/completions",
    response_model=ChatCompletion,
    responses={
        200: {
            "description": "The answer; with `stream`, server-sent events with its chunks, and `[DONE]` at the end",
            "content": {"text/event-stream": {"schema": {"$ref": "#/components/schemas/ChatCompletionChunk"}}},
        },
        **errors(400, 404, 502, 504, 507),
    },
    summary="OpenAI's chat completion",
)
async def chat_completions(body: ChatCompletionRequest, request: Request, services: Ready) -> ChatCompletion | Response:
    """Answer a conversation.

    `model` is the base, an adapter's id or name, or `prompt:` and the description of a task, which makes its adapter.
    With `auto` the system message is the description.
    """
    if not body.stream:
        return await while_connected(request, _complete(body, services))
    generation = await while_connected(request, services.chat.start(body.model, _options(body), body.adapter_id))
    headers = {} if generation.adapter_id is None else {"X-Adapter-Id": generation.adapter_id}
    return EventStream(_events(body, services.chat, generation), generation.close, headers)


def _options(body: ChatCompletionRequest) -> ChatOptions:
    wanted = None if body.response_format is None else body.response_format.wanted
    return ChatOptions(
        messages=[message.turn for message in body.messages],
        add_generation_prompt=body.add_generation_prompt is not False,
        continue_final_message=bool(body.continue_final_message),
        max_tokens=body.max_completion_tokens or body.max_tokens,
        sampling=SamplingParams(
            temperature=1.0 if body.temperature is None else body.temperature,
            top_p=1.0 if body.top_p is None else body.top_p,
            top_k=max(body.top_k or 0, 0),
            min_p=body.min_p or 0.0,
            repetition_penalty=1.0 if body.repetition_penalty is None else body.repetition_penalty,
            presence_penalty=body.presence_penalty or 0.0,
            frequency_penalty=body.frequency_penalty or 0.0,
            logit_bias=tuple((body.logit_bias or {}).items()),
            seed=body.seed,
            logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        ),
        stop=body.stops,
        choices=body.n or 1,
        json=None if wanted is None else JsonWanted(*wanted),
        examples=pairs_of(body.examples),
        context=body.context,
    )


async def _complete(body: ChatCompletionRequest, services: Services) -> ChatCompletion:
    generation = await services.chat.start(body.model, _options(body), body.adapter_id)
    answers = await generation.answers()
    return ChatCompletion(
        id=_new_id(),
        created=int(time.time()),
        model=body.model,
        choices=[
            Choice(
                index=index,
                message=AssistantMessage(content=answer.text),
                logprobs=_logprobs(services.chat, answer.steps) if body.logprobs else None,
                finish_reason=answer.finish_reason,
            )
            for index, answer in enumerate(answers)
        ],
        usage=Usage.of(generation),
        system_fingerprint=services.chat.fingerprint,
        adapter_id=generation.adapter_id,
        context_used=generation.context_used,
        scale=generation.scale,
    )


async def _events(body: ChatCompletionRequest, chat: ChatService, generation: Generation) -> AsyncIterator[str]:
    identity, created = _new_id(), int(time.time())
    with_usage = body.stream_options is not None and body.stream_options.include_usage

    def chunk(choices: list[ChunkChoice], **more: Usage | None) -> str:
        return event(
            ChatCompletionChunk(
                id=identity,
                object="chat.completion.chunk",
                created=created,
                model=body.model,
                choices=choices,
                system_fingerprint=chat.fingerprint,
                adapter_id=generation.adapter_id,
                context_used=generation.context_used,
                scale=generation.scale,
                **more,
            )
        )

    for index in range(body.n or 1):
        yield chunk([ChunkChoice(index=index, delta=Delta(role="assistant", content=""), finish_reason=None)])
    async for piece in generation.pieces():
        logprobs = _logprobs(chat, [piece.step]) if body.logprobs and piece.step is not None else None
        if not piece.text and logprobs is None and piece.finish_reason is None:
            continue  # half a character, or the possible start of a stop string
        delta = Delta(content=piece.text) if piece.text else Delta()
        yield chunk([ChunkChoice(index=piece.index, delta=delta, logprobs=logprobs, finish_reason=piece.finish_reason)])
    if with_usage:
        yield chunk([], usage=Usage.of(generation))


def _logprobs(chat: ChatService, steps: Sequence[Step]) -> Logprobs:
    content = []
    for item in steps:
        text, raw = chat.token_text(item.token)
        top = []
        for token, logprob in item.top_logprobs:
            other, other_raw = chat.token_text(token)
            top.append(TopLogprob(token=other, logprob=logprob, bytes=other_raw))
        content.append(TokenLogprob(token=text, logprob=item.logprob or 0.0, bytes=raw, top_logprobs=top))
    return Logprobs(content=content, refusal=None)


def _new_id() -> str:
    return f"chatcmpl-{uuid.uuid4().hex}"


@router.get(
    "/models", response_model=ModelList, responses=errors(400, 404), summary="All models: the base and the adapters"
)
async def list_models(
    services: Ready,
    limit: Annotated[int, Query(ge=1, le=1000, description="Adapters on a page, each with its names.")] = 1000,
    after: Annotated[str | None, Query(max_length=64, description="`last_id` of the previous page.")] = None,
) -> ModelList:
    """List the base, `auto`, and the adapters, the newest first. Each name of an adapter is a model too."""
    cursor = None if after is None else await services.catalogue.resolve(after)
    adapters, more = await services.catalogue.ids(limit, cursor)
    names = await services.catalogue.names_of([identity for identity, _ in adapters])
    models = [_base_model(services), _base_model(services, AUTO_MODEL)] if after is None else []
    for identity, created in adapters:
        models += [_adapter_model(services, name, created) for name in (identity, *names.get(identity, ()))]
    return ModelList(data=models, has_more=more, last_id=models[-1].id if models else None)


@router.get("/models/{model:path}", response_model=Model, responses=errors(400, 404), summary="One model")
async def show_model(model: str, services: Ready) -> Model:
    """Show a model by its id, which is a value of `model` in a chat completion."""
    if model in (services.models.base.spec.base_id, AUTO_MODEL):
        return _base_model(services, model)
    record = await services.catalogue.record(model)
    return _adapter_model(services, model, record.created)


def _base_model(services: Services, name: str | None = None) -> Model:
    base = services.models.base.spec.base_id
    return Model(
        id=name or base, created=services.started, root=base, parent=None, max_model_len=services.chat.max_context
    )


def _adapter_model(services: Services, name: str, created: float) -> Model:
    base = services.models.base.spec.base_id
    return Model(id=name, created=int(created), root=base, parent=base, max_model_len=services.chat.max_context)
