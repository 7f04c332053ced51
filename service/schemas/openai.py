"""Responses of the OpenAI-compatible routes.

Fields and meanings are OpenAI's, except where a description says so.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from llgbm.conditioning.context_choice import Context
from service.schemas.common import Usage, example

_LOGPROB: dict[str, Any] = {"token": "from", "logprob": -0.02, "bytes": [102, 114, 111, 109]}


class TopLogprob(BaseModel):
    """A possible token, and the natural logarithm of its probability."""

    model_config = example(_LOGPROB)
    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    """A token of the answer, and the most likely tokens in its place."""

    model_config = example({**_LOGPROB, "top_logprobs": [_LOGPROB]})
    top_logprobs: list[TopLogprob]


class Logprobs(BaseModel):
    """Log probabilities of the tokens of the answer, in order."""

    model_config = example({"content": [{**_LOGPROB, "top_logprobs": [_LOGPROB]}], "refusal": None})
    content: list[TokenLogprob]
    refusal: None = None


class AssistantMessage(BaseModel):
    """The answer."""

    model_config = example({"role": "assistant", "content": "fromage", "refusal": None})
    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class Choice(BaseModel):
    """One of the `n` answers."""

    model_config = example(
        {"index": 0, "message": {"role": "assistant", "content": "fromage"}, "finish_reason": "stop"}
    )
    index: int
    message: AssistantMessage
    logprobs: Logprobs | None = None
    finish_reason: Literal["stop", "length"]


class ChatCompletion(BaseModel):
    """The answer, and the adapter that gave it."""

    model_config = example(
        {
            "id": "chatcmpl-6f1d0a8e7c5b4a39",
            "object": "chat.completion",
            "created": 1763848800,
            "model": "french",
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": "fromage", "refusal": None},
                    "logprobs": None,
                    "finish_reason": "stop",
                }
            ],
            "usage": {"prompt_tokens": 30, "completion_tokens": 4, "total_tokens": 34},
            "system_fingerprint": "fp_1a2b3c4d",
            "adapter_id": "lora-0f3a5d1c2b4e69788796a5b4",
            "context_used": "none",
            "scale": 1.0,
        }
    )
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    system_fingerprint: str
    adapter_id: str | None = Field(description="Not OpenAI's: the adapter that answered; null for the plain base.")
    context_used: Context = Field(
        description="Not OpenAI's: the texts of the task in the context, in addition to the messages."
    )
    scale: float | None = Field(
        description="Not OpenAI's: factor on the adapter's effect; 0 if the base answered in place of the adapter, "
        "null for a request without an adapter."
    )


class Delta(BaseModel):
    """The text that a chunk adds."""

    model_config = example({"content": "from"})
    role: Literal["assistant"] | None = None
    content: str | None = None


class ChunkChoice(BaseModel):
    """The part of a chunk that belongs to one of the `n` answers."""

    model_config = example({"index": 0, "delta": {"content": "from"}, "logprobs": None, "finish_reason": None})
    index: int
    delta: Delta
    logprobs: Logprobs | None = None
    finish_reason: Literal["stop", "length"] | None = None


_CHUNK: dict[str, Any] = {
    "id": "chatcmpl-6f1d0a8e7c5b4a39",
    "object": "chat.completion.chunk",
    "created": 1763848800,
    "model": "french",
    "choices": [{"index": 0, "delta": {"content": "from"}, "logprobs": None, "finish_reason": None}],
    "usage": None,
    "system_fingerprint": "fp_1a2b3c4d",
    "adapter_id": "lora-0f3a5d1c2b4e69788796a5b4",
    "context_used": "none",
    "scale": 1.0,
}


class ChatCompletionChunk(BaseModel):
    """One server-sent event of a stream."""

    model_config = example(_CHUNK)
    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None
    system_fingerprint: str
    adapter_id: str | None
    context_used: Context
    scale: float | None


_MODEL: dict[str, Any] = {
    "id": "french",
    "object": "model",
    "created": 1763848800,
    "owned_by": "llgbm",
    "root": "Qwen/Qwen2.5-Coder-0.5B-Instruct",
    "parent": "Qwen/Qwen2.5-Coder-0.5B-Instruct",
    "max_model_len": 4096,
}


class Model(BaseModel):
    """A model. `root` and `parent` are vLLM's fields: the base of an adapter."""

    model_config = example(_MODEL)
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "llgbm"
    root: str
    parent: str | None
    max_model_len: int


class ModelList(BaseModel):
    """One page of models."""

    model_config = example({"object": "list", "data": [_MODEL], "has_more": False, "last_id": "french"})
    object: Literal["list"] = "list"
    data: list[Model]
    has_more: bool
    last_id: str | None
