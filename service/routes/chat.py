"""POST /chat: answers a question with the adapter of a task."""

from __future__ import annotations

import time
import uuid

from fastapi import APIRouter, Request

from llgbm.decoding.sampling import SamplingParams
from service.chat.service import ChatOptions
from service.http.sse import while_connected
from service.schemas.adapters import pairs_of
from service.schemas.chat import ChatRequest, ChatResponse, ChatTimingsMs
from service.schemas.common import Usage, errors
from service.state import Ready, Services

router = APIRouter(tags=["chat"])


@router.post(
    "/chat",
    response_model=ChatResponse,
    responses=errors(400, 404, 502, 504, 507),
    summary="Ask with an adapter applied",
)
async def chat(body: ChatRequest, request: Request, services: Ready) -> ChatResponse:
    """Answer with the adapter of a task, which is made if it does not exist, or with an adapter by id or name."""
    return await while_connected(request, _answer(body, services))


async def _answer(body: ChatRequest, services: Services) -> ChatResponse:
    start = time.perf_counter()
    options = ChatOptions(
        messages=[message.turn for message in body.conversation],
        max_tokens=body.max_tokens,
        sampling=SamplingParams(temperature=body.temperature, top_p=body.top_p, seed=body.seed),
        compare_base=body.compare_base,
        examples=pairs_of(body.examples),
        context=body.context,
    )
    if body.adapter_id is None:
        generation = await services.chat.start_described(body.prompt, options)
    else:
        generation = await services.chat.start_adapted(body.adapter_id, options)
    answer, *others = await generation.answers()
    done = time.perf_counter()
    return ChatResponse(
        id=f"chat-{uuid.uuid4().hex}",
        adapter_id=generation.adapter_id,
        context_used=generation.context_used,
        scale=generation.scale or 0.0,
        answer=answer.text,
        base_answer=others[0].text if others else None,
        modules_hooked=generation.modules_hooked,
        warning=generation.warning,
        usage=Usage.of(generation),
        finish_reason=answer.finish_reason,
        timings_ms=ChatTimingsMs(
            adapter=_milliseconds(start, generation.started),
            first_token=_milliseconds(generation.started, generation.first_token or done),
            total=_milliseconds(start, done),
        ),
    )


def _milliseconds(start: float, end: float) -> float:
    return round(1000 * (end - start), 3)
