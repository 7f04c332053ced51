"""Models of POST /chat."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field, model_validator

from llgbm.conditioning.context_choice import Context, ContextWanted
from service.schemas.adapters import FRENCH, Examples, Text
from service.schemas.common import Strict, Usage, example
from service.schemas.messages import Message

SEED = (
    "The same seed gives the same answer. On an int8 base, other requests in the batch, and a beginning that was read"
    " before (LLGBM_PREFIX_TOKENS), can change it where two tokens are almost equally likely."
)
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63, description=SEED)]
Temperature = Annotated[
    float, Field(ge=0, le=2, allow_inf_nan=False, description="0 always takes the most likely token.")
]
TopP = Annotated[
    float,
    Field(
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="Probability mass of nucleus sampling; 0 always takes the most likely token.",
    ),
]
MaxTokens = Annotated[
    int,
    Field(ge=1, lt=2**31, description="Maximum number of tokens of the answer; the rest of the context limits it too."),
]


class ChatRequest(Strict):
    """A question, and the adapter that answers it: by description or examples of its task, by id, or by name."""

    model_config = example(
        {"prompt": FRENCH, "query": "cheese", "max_tokens": 16, "compare_base": True},
        {
            "prompt": "Classify the support ticket as billing, technical or shipping.",
            "examples": [{"input": "My parcel is late.", "output": "shipping"}],
            "query": "I was charged twice.",
        },
        {"adapter_id": "french", "messages": [{"role": "user", "content": "cheese"}]},
    )
    prompt: Text | None = Field(None, description="Description of the task; its adapter is made if it does not exist.")
    adapter_id: str | None = Field(None, min_length=1, max_length=64, description="Id or name of an adapter.")
    query: Text | None = Field(None, description="The user's turn.")
    messages: list[Message] | None = Field(None, min_length=1, max_length=256, description="A conversation.")
    max_tokens: MaxTokens | None = None
    temperature: Temperature = 0.0
    top_p: TopP = 1.0
    seed: Seed | None = None
    examples: Examples | None = None
    context: ContextWanted = Field(
        "auto",
        description="The texts of the task in the context, in addition to the conversation, for adapter and base: "
        "none, the description, or description and examples. `auto` takes the best choice by calibration. With "
        "adapter_id only `none` is possible.",
    )
    compare_base: bool = Field(False, description="Answer with the plain base too, in the same batch.")

    @model_validator(mode="after")
    def _one_of_each(self) -> ChatRequest:
        if (self.prompt is None and self.examples is None) == (self.adapter_id is None):
            raise ValueError("give either prompt, examples or both, or adapter_id; the base is at /v1/chat/completions")
        if (self.query is None) == (self.messages is None):
            raise ValueError("give either query or messages")
        if self.adapter_id is not None and "context" in self.model_fields_set and self.context != "none":
            raise ValueError(
                f"context {self.context!r} needs prompt or examples; with adapter_id only 'none' is possible"
            )
        return self

    @property
    def conversation(self) -> list[Message]:
        """The messages, or the query as one message."""
        return self.messages or [Message(role="user", content=self.query or "")]


class ChatTimingsMs(BaseModel):
    """Duration of each stage in milliseconds."""

    model_config = example({"adapter": 61.0, "first_token": 210.5, "total": 704.1})
    adapter: float = Field(description="Until the adapter was found or made.")
    first_token: float = Field(description="From the adapter to the first token.")
    total: float


class ChatResponse(BaseModel):
    """The answer with the adapter."""

    model_config = example(
        {
            "id": "chat-6f1d0a8e7c5b4a39",
            "adapter_id": "lora-0f3a5d1c2b4e69788796a5b4",
            "context_used": "none",
            "scale": 1.0,
            "answer": "fromage",
            "base_answer": "Cheese is a dairy product",
            "modules_hooked": 168,
            "warning": None,
            "usage": {"prompt_tokens": 30, "completion_tokens": 4, "total_tokens": 34},
            "finish_reason": "stop",
            "timings_ms": {"adapter": 61.0, "first_token": 210.5, "total": 704.1},
        }
    )
    id: str
    adapter_id: str | None = Field(description="The adapter that answered; null for the base alone, at scale 0.")
    context_used: Context = Field(description="The texts of the task in the context, in addition to the conversation.")
    scale: float = Field(description="Factor on the adapter's effect.")
    answer: str
    base_answer: str | None = None
    modules_hooked: int = Field(description="Number of modules that the adapter changed for this answer.")
    warning: str | None = Field(
        description="As of the adapter: present if few right answers are expected. It says what would help."
    )
    usage: Usage
    finish_reason: Literal["stop", "length"]
    timings_ms: ChatTimingsMs
