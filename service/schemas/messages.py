"""The messages of a conversation, in OpenAI's form."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationInfo, field_validator, model_validator

from service.chat.task import EXAMPLE_NAMES, ExampleName
from service.schemas.common import Strict, example

IGNORED_IN_MESSAGES = {
    "tool_call_id": "the results of tool calls are rendered in their order",
    "refusal": "belongs to an earlier answer",
    "annotations": "belongs to an earlier answer",
    "reasoning": "belongs to an earlier answer",
    "reasoning_content": "belongs to an earlier answer",
}
"""Fields of a message that are ignored since the chat templates do not use them, and why."""


def without(data: Any, names: Mapping[str, str] | frozenset[str]) -> Any:
    """An object without these fields and without nulls; any other value unchanged."""
    if not isinstance(data, dict):
        return data
    return {name: value for name, value in data.items() if value is not None and name not in names}


class TextPart(Strict):
    """One part of a message's content. Only text is supported."""

    model_config = example({"type": "text", "text": "cheese"})
    type: Literal["text"] = "text"
    text: str

    @model_validator(mode="before")
    @classmethod
    def _without_hints(cls, data: Any) -> Any:
        return without(data, frozenset({"cache_control"}))  # a hint for the caches of other servers


class FunctionCall(BaseModel):
    """A function that the assistant called."""

    model_config = example({"name": "weather", "arguments": '{"town": "Bern"}'})
    name: str
    arguments: str | dict[str, Any] = Field(description="A JSON object, or its text.")

    @field_validator("arguments")
    @classmethod
    def _is_an_object(cls, value: str | dict[str, Any]) -> str | dict[str, Any]:
        try:
            given = json.loads(value or "{}") if isinstance(value, str) else value
        except (ValueError, RecursionError):
            given = None
        if not isinstance(given, dict):
            raise ValueError("Input should be a JSON object, as text")
        return given


class ToolCall(BaseModel):
    """A call of a tool by the assistant. The prompt does not have its `id`."""

    model_config = example({"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}})
    id: str | None = None
    type: Literal["function"] = "function"
    function: FunctionCall


class Message(Strict):
    """One message of a conversation."""

    model_config = example({"role": "user", "content": "cheese"})
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    name: ExampleName | None = Field(
        None,
        description="Marks the message as one side of an example of the task, for the models `auto` and `prompt:`. "
        "Other names are ignored.",
    )
    tool_calls: list[ToolCall] | None = Field(None, description="Calls of tools by the assistant.")
    function_call: FunctionCall | None = Field(None, description="The older form of tool_calls.")
    content: str | list[TextPart] | None = Field(
        None, validate_default=True, description="May be null only in a message with calls."
    )

    @model_validator(mode="before")
    @classmethod
    def _only_what_is_rendered(cls, data: Any) -> Any:
        kept = without(data, IGNORED_IN_MESSAGES)
        marks = isinstance(kept, dict) and kept.get("name") in EXAMPLE_NAMES
        return kept if marks else without(kept, frozenset({"name"}))  # the chat templates do not use other names

    @field_validator("tool_calls", "function_call")
    @classmethod
    def _of_the_assistant(cls, value: Any, info: ValidationInfo) -> Any:
        if value and info.data.get("role", "assistant") != "assistant":
            raise ValueError("only messages of the assistant can have calls")
        return value

    @field_validator("content")
    @classmethod
    def _there(cls, value: Any, info: ValidationInfo) -> Any:
        if value is None and not (info.data.get("tool_calls") or info.data.get("function_call")):
            raise ValueError("Input should be a string or a list of text parts")
        return value

    @property
    def text(self) -> str:
        """The text of all parts."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""

    @property
    def turn(self) -> dict[str, Any]:
        """The message for the chat template: with its names of the roles, and arguments as objects."""
        role = {"developer": "system", "function": "tool"}.get(self.role, self.role)
        calls = [call.function for call in self.tool_calls or ()]
        calls += [self.function_call] if self.function_call is not None else []
        turn: dict[str, Any] = {"role": role, "content": self.text}
        if self.name is not None:
            turn["name"] = self.name
        if calls:
            turn["tool_calls"] = [{"type": "function", "function": call.model_dump()} for call in calls]
        return turn
