"""The required form of an answer."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from service.errors import ApiError
from service.schemas.common import Strict, example

_PERSON: dict[str, Any] = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}


class JsonSchema(Strict):
    """A JSON schema, in OpenAI's envelope."""

    model_config = example({"name": "person", "strict": True, "schema": _PERSON})
    name: str | None = Field(None, description="Not used.")
    description: str | None = Field(None, description="Not used; put instructions for the model into a message.")
    strict: bool | None = Field(None, description="Not used; the schema is always enforced.")
    definition: dict[str, Any] = Field(alias="schema", description="The JSON schema.")


class ResponseFormat(Strict):
    """The form of the answer: `text`, `json_object`, or `json_schema` with its schema."""

    model_config = example({"type": "json_object"})
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = Field(None, description="Required with the type json_schema.")
    definition: dict[str, Any] | None = Field(
        None, alias="schema", description="Only with the type json_object: a JSON schema, as in llama.cpp."
    )

    @model_validator(mode="after")
    def _schema_where_it_belongs(self) -> Self:
        if (self.json_schema is None) == (self.type == "json_schema"):
            words = "is missing" if self.json_schema is None else "needs the type json_schema"
            raise ApiError(400, f"response_format.json_schema {words}", param="response_format.json_schema")
        if self.definition is not None and self.type != "json_object":
            raise ApiError(400, "response_format.schema needs the type json_object", param="response_format.schema")
        return self

    @property
    def wanted(self) -> tuple[dict[str, Any] | None, str] | None:
        """The schema (None for any object) and its place in the request; None for text."""
        if self.type == "text":
            return None
        if self.json_schema is not None:
            return self.json_schema.definition, "response_format.json_schema.schema"
        return self.definition, "response_format.schema"
