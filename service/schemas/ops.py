"""Models of the operational routes."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from service.schemas.common import example


class Live(BaseModel):
    """The process answers."""

    model_config = example({"status": "alive"})
    status: Literal["alive"] = "alive"


class Ready(BaseModel):
    """Whether requests are served, and the loaded models."""

    model_config = example(
        {
            "status": "ready",
            "reason": None,
            "embedding_cache": "ok",
            "base": "Qwen/Qwen2.5-Coder-0.5B-Instruct",
            "base_storage": "int8",
            "generator": "9c1185a5c5e9",
        }
    )
    status: Literal["ready", "degraded", "unavailable", "loading", "draining", "failed"] = Field(
        description="degraded: requests are served, but without Redis or without some of the vLLM servers. "
        "unavailable: no vLLM server answers. The HTTP status is 200 for ready and degraded, else 503."
    )
    reason: str | None = Field(description="The problem, if the status is not ready.")
    embedding_cache: Literal["ok", "degraded", "unknown"]
    base: str | None
    base_storage: str | None = Field(
        description="Storage of the base's Linear weights: int8, float32 or bfloat16; null with vLLM, which holds them."
    )
    generator: str | None = Field(description="First digits of the generator's digest.")
