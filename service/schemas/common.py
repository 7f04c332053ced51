"""Models of several routes."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from service.chat.generation import Generation


def example(*values: dict[str, Any]) -> ConfigDict:
    """The configuration of a model with examples in its schema."""
    return ConfigDict(json_schema_extra={"examples": list(values)})


class Strict(BaseModel):
    """A request model, which refuses unknown fields."""

    model_config = ConfigDict(extra="forbid")


class ErrorBody(BaseModel):
    """OpenAI's error object."""

    model_config = example(
        {"message": "stop: it must not be empty", "type": "invalid_request_error", "code": "invalid", "param": "stop"}
    )
    message: str = Field(description="The problem, the expectation and the next step.")
    type: str
    code: str | None = Field(description="The reason, for programs.")
    param: str | None = Field(description="The field of the request that caused the error.")


class ErrorEnvelope(BaseModel):
    """The body of every error."""

    model_config = example(
        {
            "error": {
                "message": "there is no adapter 'french'; GET /adapters lists the adapters",
                "type": "invalid_request_error",
                "code": "adapter_not_found",
                "param": None,
            },
            "request_id": "3f0c2a4be0d94b0f9d6a7a0f5c1e2d3b",
        }
    )
    error: ErrorBody
    request_id: str


class PromptTokensDetails(BaseModel):
    """How the prompt was read."""

    model_config = example({"cached_tokens": 24})
    cached_tokens: int = Field(description="Tokens at its beginning that were read before with the same adapter.")


class Usage(BaseModel):
    """Token counts."""

    model_config = example(
        {
            "prompt_tokens": 30,
            "completion_tokens": 4,
            "total_tokens": 34,
            "prompt_tokens_details": {"cached_tokens": 24},
        }
    )
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails | None = None

    @classmethod
    def of(cls, generation: Generation) -> Usage:
        """The counts of the answers so far."""
        prompt, completion, known = generation.prompt_tokens, generation.completion_tokens, generation.known_tokens
        return cls(
            prompt_tokens=prompt,
            completion_tokens=completion,
            total_tokens=prompt + completion,
            prompt_tokens_details=None if known is None else PromptTokensDetails(cached_tokens=known),
        )


_MEANING = {
    400: "The request is not valid",
    401: "The API key is missing or unknown",
    403: "The route is switched off, or the host name is not allowed",
    404: "Not found",
    409: "The name is in use",
    413: "The body or the prompt is too large",
    415: "The body is not JSON, or is compressed",
    416: "No byte of that range exists",
    422: "A field is missing, unknown or out of range",
    429: "Too many requests; Retry-After has the seconds to wait",
    500: "An error in the service",
    502: "A vLLM server failed",
    503: "The service is loading or shutting down",
    504: "The answer was not complete before the deadline",
    507: "The disk is full",
}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI entries for the errors of a route: the given statuses, and those of every route."""
    return {
        status: {"model": ErrorEnvelope, "description": _MEANING[status]}
        for status in sorted({*statuses, 401, 403, 413, 415, 422, 429, 500, 503})
    }
