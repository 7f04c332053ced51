"""The request of /v1/chat/completions, and the treatment of each field that clients are known to send.

A field is supported, ignored because it cannot change the answer, or refused with 400 and `error.param`. The table of
all fields in docs/OPERATIONS.md is made from this file by `python -m service.documents`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

from pydantic import Field, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue

from llgbm.conditioning.context_choice import ContextWanted
from service.chat.task import MAX_EXAMPLES
from service.errors import ApiError
from service.schemas.adapters import Examples
from service.schemas.chat import SEED, Seed, Temperature, TopP
from service.schemas.common import Strict, example
from service.schemas.messages import Message, without
from service.schemas.response_format import ResponseFormat


class Refused(NamedTuple):
    """A field that is not supported: advice for the client, and values that are accepted since they change nothing."""

    instead: str
    neutral: tuple[Any, ...] = ()


IGNORED: Mapping[str, str] = {
    "user": "the identity of users is not used",
    "safety_identifier": "the identity of users is not used",
    "metadata": "no conversation is stored",
    "store": "no conversation is stored",
    "service_tier": "there is only one",
    "parallel_tool_calls": "tools are not supported",
    "prediction": "it could only make the same answer faster",
    "prompt_cache_key": "it could only make the same answer faster",
    "prompt_cache_retention": "it could only make the same answer faster",
    "prompt_cache_options": "it could only make the same answer faster",
    "cache_prompt": "it could only make the same answer faster",
    "id_slot": "it could only make the same answer faster",
    "cache_salt": "it could only make the same answer faster",
    "priority": "requests are decoded in the order of arrival",
    "request_id": "the header X-Request-ID sets it",
}
"""Fields that cannot change the answer, and why."""

_MODEL = "`model` takes the adapter's id or name"
_LENGTH, _FORMAT = "use max_tokens", "use response_format"
REFUSED: Mapping[str, Refused] = {
    "tools": Refused("tools are not supported", ([],)),
    "tool_choice": Refused("tools are not supported", ("none", "auto")),
    "functions": Refused("tools are not supported", ([],)),
    "function_call": Refused("tools are not supported", ("none", "auto")),
    "modalities": Refused("answers are text", (["text"],)),
    "audio": Refused("answers are text"),
    "web_search_options": Refused("the web is not searched"),
    "reasoning_effort": Refused("the models have no reasoning mode", ("none",)),
    "verbosity": Refused("ask for it in a message", ("medium",)),
    "moderation": Refused("there is no moderation"),
    "adapter_name": Refused(_MODEL),
    "lora": Refused(_MODEL),
    "lora_path": Refused(_MODEL),
    "lora_request": Refused(_MODEL),
    "lora_adapter": Refused(_MODEL),
    "prompt": Refused("use messages"),
    "system": Refused("use a message with the role system"),
    "stop_sequences": Refused("use stop", ([],)),
    "stop_token_ids": Refused("use stop", ([],)),
    "bad_words": Refused("use logit_bias", ([],)),
    "ignore_eos": Refused("the model decides where an answer ends", (False,)),
    "min_tokens": Refused("the model decides where an answer ends", (0,)),
    "include_stop_str_in_output": Refused("add the string to the answer", (False,)),
    "echo": Refused("put the message before the answer", (False,)),
    "best_of": Refused("use n", (1,)),
    "use_beam_search": Refused("answers are greedy or sampled", (False,)),
    "do_sample": Refused("temperature 0 is greedy"),
    "n_predict": Refused(_LENGTH),
    "num_predict": Refused(_LENGTH),
    "max_new_tokens": Refused(_LENGTH),
    "max_output_tokens": Refused(_LENGTH),
    "num_ctx": Refused("LLGBM_MAX_CONTEXT sets the context"),
    "options": Refused("put temperature, top_p and the others into the request itself", ({},)),
    "repeat_penalty": Refused("use repetition_penalty", (1,)),
    "typical_p": Refused("use top_p or min_p", (1,)),
    "mirostat": Refused("use top_p or min_p", (0,)),
    "format": Refused(_FORMAT, ("",)),
    "grammar": Refused(_FORMAT, ("",)),
    "json_schema": Refused(_FORMAT),
    "guided_json": Refused(_FORMAT),
    "guided_regex": Refused(_FORMAT + " with a schema that has a pattern"),
    "guided_choice": Refused(_FORMAT + " with a schema that has an enum"),
    "guided_grammar": Refused(_FORMAT),
    "structured_outputs": Refused(_FORMAT),
    "chat_template": Refused("the base's own template is used"),
    "chat_template_kwargs": Refused("the base's own template is used", ({},)),
    "documents": Refused("put them into a message", ([],)),
}
"""Known fields of OpenAI and of other servers that are not supported. Unknown fields are refused too."""

_OF_ADAPTERS = re.compile(r"lora|adapter|peft", re.IGNORECASE)

Bias = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
Length = Annotated[int, Field(ge=-1, lt=2**31)]


class StreamOptions(Strict):
    """Options of a stream."""

    model_config = example({"include_usage": True})
    include_usage: bool = Field(False, description="Send a last chunk with the token counts.")

    @model_validator(mode="before")
    @classmethod
    def _without_padding(cls, data: Any) -> Any:
        return without(data, frozenset({"include_obfuscation"}))


class ChatCompletionRequest(Strict):
    """A chat completion. A field that could change the answer is supported or refused."""

    model_config = example(
        {
            "model": "prompt:Translate the English word to French.",
            "messages": [{"role": "user", "content": "cheese"}],
            "max_tokens": 16,
            "temperature": 0,
        },
        {
            "model": "auto",
            "messages": [
                {"role": "system", "content": "Classify the ticket as billing, technical or shipping."},
                {"role": "user", "content": "I was charged twice."},
            ],
        },
    )
    model: str = Field(
        min_length=1,
        description="The base's id, an adapter's id or name, `prompt:` and the description of a task, or `auto`, with "
        "the system message as the description.",
    )
    examples: Examples | None = Field(
        None,
        description=f"Not OpenAI's: up to {MAX_EXAMPLES} examples of the task, as in /chat, for `prompt:` and `auto`.",
    )
    context: ContextWanted | None = Field(
        None,
        description="Not OpenAI's: the texts of the task in the context, in addition to the messages, as in /chat, for "
        "`prompt:` and `auto`. Default auto.",
    )
    adapter_id: str | None = Field(
        None,
        min_length=1,
        max_length=64,
        description="Not OpenAI's: id or name of an adapter, as in /chat. `model` is the base, or the same adapter.",
    )
    messages: list[Message] = Field(
        min_length=1,
        max_length=256,
        description="The conversation. The prompt includes earlier tool calls and their results.",
    )
    add_generation_prompt: bool | None = Field(
        None, description="False leaves out the start of the assistant's turn at the end of the prompt."
    )
    continue_final_message: bool | None = Field(
        None, description="The answer continues the last message, which must be the assistant's."
    )
    stream: bool | None = Field(None, description="Send the answer as server-sent events.")
    stream_options: StreamOptions | None = Field(None, description="Only with stream.")
    max_tokens: Length | None = Field(
        None,
        description="Maximum number of tokens of the answer; -1 for the rest of the context, which always limits it.",
    )
    max_completion_tokens: Length | None = Field(None, description="The newer name of max_tokens.")
    temperature: Temperature | None = Field(None, description="Default 1; 0 always takes the most likely token.")
    top_p: TopP | None = Field(
        None, description="Probability mass of nucleus sampling; 0 always takes the most likely token."
    )
    top_k: int | None = Field(
        None, ge=-1, lt=2**31, description="Sample from this number of most likely tokens; 0 or -1 for all."
    )
    min_p: float | None = Field(
        None, ge=0, le=1, description="Minimum probability of a token, relative to the most likely one."
    )
    repetition_penalty: float | None = Field(
        None, gt=0, le=100, description="Above 1, tokens in the prompt or the answer become less likely."
    )
    presence_penalty: Penalty | None = Field(None, description="Above 0, tokens in the answer become less likely.")
    frequency_penalty: Penalty | None = Field(None, description="As presence_penalty, once for each occurrence.")
    logit_bias: dict[Annotated[int, Field(ge=0, lt=2**31)], Bias] | None = Field(
        None, max_length=1024, description="Token id -> number that is added to its logit."
    )
    seed: Seed | None = Field(None, description=SEED)
    stop: str | list[str] | None = Field(None, description="One string or up to 16, which end the answer.")
    n: int | None = Field(None, ge=1, description="Number of answers to the prompt, with successive seeds.")
    logprobs: bool | None = Field(
        None, description="Log probabilities of the model, before penalties, bias and sampling."
    )
    top_logprobs: int | None = Field(None, ge=0, le=20, description="Only with logprobs.")
    response_format: ResponseFormat | None = Field(
        None, description="text, json_object or json_schema. An answer is valid JSON unless max_tokens ends it."
    )

    @classmethod
    def __get_pydantic_json_schema__(cls, core: Any, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler(core)
        fields = handler.resolve_ref_schema(schema)["properties"]
        fields |= {name: {"description": f"Ignored: {why}."} for name, why in IGNORED.items()}
        return schema

    @model_validator(mode="before")
    @classmethod
    def _only_what_is_done(cls, data: Any) -> Any:
        given = without(data, IGNORED)
        if not isinstance(given, dict):
            return given
        for name in [name for name in given if name not in cls.model_fields]:
            refused = REFUSED.get(name)
            if refused is not None and given[name] in refused.neutral:
                del given[name]
                continue
            hint = refused.instead if refused is not None else _MODEL if _OF_ADAPTERS.search(name) else "leave it out"
            known = "is not supported" if refused is not None else "is not known"
            raise ApiError(400, f"the field {name[:64]!r} {known}: {hint}", param=name[:64])
        return given

    @model_validator(mode="after")
    def _fields_that_go_together(self) -> ChatCompletionRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise ApiError(400, "top_logprobs needs logprobs: true", param="top_logprobs")
        if self.stream_options is not None and not self.stream:
            raise ApiError(400, "stream_options needs stream: true", param="stream_options")
        if len(self.stops) > 16 or not all(self.stops):
            raise ApiError(400, "stop must be one string or up to 16, none of them empty", param="stop")
        for name in ("max_tokens", "max_completion_tokens"):
            if getattr(self, name) == 0:
                raise ApiError(400, f"{name} must be at least 1, or -1 for the rest of the context", param=name)
        if self.continue_final_message:
            if self.add_generation_prompt:
                raise ApiError(
                    400,
                    "continue_final_message continues the last message, so add_generation_prompt must be false",
                    param="add_generation_prompt",
                )
            if self.messages[-1].role != "assistant":
                raise ApiError(
                    400,
                    "continue_final_message continues a message of the assistant, but the last message is not one",
                    param="continue_final_message",
                )
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        """All stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


def fields_table() -> str:
    """The treatment of each field, as a Markdown table."""

    def row(name: str, kind: str, text: str) -> str:
        return f"| `{name}` | {kind} | {text.rstrip('.').replace('|', chr(92) + '|')} |"

    lines = ["| field | treatment | meaning, reason, or advice |", "|---|---|---|"]
    lines += [
        row(name, "supported", field.description or "") for name, field in ChatCompletionRequest.model_fields.items()
    ]
    lines += [row(name, "ignored", why) for name, why in IGNORED.items()]
    for name, refused in REFUSED.items():
        neutral = ", ".join(f"`{json.dumps(value)}`" for value in refused.neutral)
        lines.append(row(name, "400", refused.instead + (f"; accepted: {neutral}" if neutral else "")))
    lines.append("| any other | 400 | it is not known; null is accepted |")
    return "\n".join(lines) + "\n"
