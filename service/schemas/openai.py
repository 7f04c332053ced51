"""Models of the OpenAI-compatible routes. Fields and meanings are OpenAI's; what is added is said so."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from service.schemas.chat import MaxTokens, Seed, Temperature, TopP
from service.schemas.common import Message, Usage, example


class StreamOptions(BaseModel):
    """What a stream tells besides its text."""

    model_config = example({"include_usage": True})
    include_usage: bool = Field(False, description="Send one last chunk with the token counts.")


class ChatCompletionRequest(BaseModel):
    """A chat completion. Fields of OpenAI's that would change the answer and are not understood here are refused."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "prompt:Translate the English word to French.",
                    "messages": [{"role": "user", "content": "cheese"}],
                    "max_tokens": 16,
                    "temperature": 0,
                }
            ]
        }
    )
    model: str = Field(
        min_length=1, description="The base's id, an adapter's id or name, or `prompt:` and the description of a task."
    )
    messages: list[Message] = Field(min_length=1, max_length=256)
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: MaxTokens | None = None
    max_completion_tokens: MaxTokens | None = Field(None, description="The newer name of max_tokens.")
    temperature: Temperature | None = Field(None, description="Default 1; 0 takes the likeliest token.")
    top_p: TopP | None = None
    seed: Seed | None = None
    stop: str | list[str] | None = None
    n: int | None = Field(None, ge=1, description="Answers to the same prompt; their seeds follow each other.")
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    response_format: dict[str, Any] | None = None
    tools: list[Any] | None = None
    functions: list[Any] | None = None
    function_call: str | dict[str, Any] | None = None
    modalities: list[str] | None = None
    audio: dict[str, Any] | None = None
    logit_bias: dict[str, float] | None = None

    @model_validator(mode="after")
    def _only_what_is_done(self) -> ChatCompletionRequest:
        if self.presence_penalty or self.frequency_penalty or self.logit_bias:
            raise ValueError("presence_penalty, frequency_penalty and logit_bias are not supported; leave them out")
        if self.response_format is not None and self.response_format.get("type") != "text":
            raise ValueError("response_format is not supported other than {'type': 'text'}; leave it out")
        if self.tools or self.functions or self.function_call not in (None, "none"):
            raise ValueError("tools, functions and function_call are not supported; leave them out")
        if self.modalities not in (None, ["text"]) or self.audio is not None:
            raise ValueError("audio, and modalities other than ['text'], are not supported; leave them out")
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream: true")
        if len(self.stops) > 16 or not all(self.stops):
            raise ValueError("stop is one string or up to 16, none of them empty")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        """All stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


_LOGPROB: dict[str, Any] = {"token": "from", "logprob": -0.02, "bytes": [102, 114, 111, 109]}


class TopLogprob(BaseModel):
    """A token that might have come, and the natural logarithm of its probability."""

    model_config = example(_LOGPROB)
    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    """The token that came, and the likeliest ones at its place."""

    model_config = example({**_LOGPROB, "top_logprobs": [_LOGPROB]})
    top_logprobs: list[TopLogprob]


class Logprobs(BaseModel):
    """Of each token of the answer, in order."""

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
    """OpenAI's answer, with the adapter that gave it."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
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
                }
            ]
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


class Delta(BaseModel):
    """What a chunk adds."""

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
    """What `model` may be. `root` and `parent` are vLLM's: the base of an adapter."""

    model_config = example(_MODEL)
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "llgbm"
    root: str
    parent: str | None
    max_model_len: int


class ModelList(BaseModel):
    """One page of the models."""

    model_config = example({"object": "list", "data": [_MODEL], "has_more": False, "last_id": "french"})
    object: Literal["list"] = "list"
    data: list[Model]
    has_more: bool
    last_id: str | None
