"""Models that several routes share."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


def example(*values: dict[str, Any]) -> ConfigDict:
    """The settings of a model with one example in its schema, or several."""
    return ConfigDict(json_schema_extra={"examples": list(values)})


class Strict(BaseModel):
    """A request model: an unknown field is a mistake of the caller, who is told so."""

    model_config = ConfigDict(extra="forbid")


class ErrorBody(BaseModel):
    """OpenAI's error object."""

    model_config = example(
        {"message": "stop: it must not be empty", "type": "invalid_request_error", "code": "invalid", "param": "stop"}
    )
    message: str = Field(description="What was wrong, what was expected, what to do next.")
    type: str
    code: str | None = Field(description="Machine-readable reason.")
    param: str | None = Field(description="The field of the request that is to blame.")


class ErrorEnvelope(BaseModel):
    """The body of every error."""

    model_config = example(
        {
            "error": {
                "message": "there is no adapter 'french'; GET /adapters lists those there are",
                "type": "invalid_request_error",
                "code": "adapter_not_found",
                "param": None,
            },
            "request_id": "3f0c2a4be0d94b0f9d6a7a0f5c1e2d3b",
        }
    )
    error: ErrorBody
    request_id: str


class Usage(BaseModel):
    """Token counts."""

    model_config = example({"prompt_tokens": 30, "completion_tokens": 4, "total_tokens": 34})
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


_MEANING = {
    400: "The request cannot be served as it is",
    401: "The API key is missing or unknown",
    403: "This is switched off, or the host name is not one of the service's",
    404: "There is no such thing",
    409: "The name is taken",
    413: "The body or the prompt is too large",
    415: "The body is not JSON, or is compressed",
    416: "No byte of that range exists",
    422: "A field is missing, unknown or out of range",
    429: "Too many requests; Retry-After says when to come back",
    500: "A fault of the service",
    502: "A server that decodes for this one failed",
    503: "Not ready, or shutting down",
    504: "The deadline passed before the answer was complete",
    507: "The disk is full",
}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI entries for the errors of a route: those named, and those that any route can give."""
    return {
        status: {"model": ErrorEnvelope, "description": _MEANING[status]}
        for status in sorted({*statuses, 401, 403, 413, 415, 422, 429, 500, 503})
    }
