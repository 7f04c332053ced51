"""The request of /v1/chat/completions, and what becomes of each field that clients are known to send.

Nothing that could change the answer is ignored in silence: a field is done, or is in `IGNORED`, or gets 400 with
`error.param`. docs/OPERATIONS.md has the three as a table, which `python -m service.openapi --write` makes from here.
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
from service.schemas.chat import Seed, Temperature, TopP
from service.schemas.common import Strict, example
from service.schemas.messages import Message, without
from service.schemas.response_format import ResponseFormat


class Refused(NamedTuple):
    """A field that is not done: what to do about it, and values that say what happens anyway."""

    instead: str
    neutral: tuple[Any, ...] = ()


IGNORED: Mapping[str, str] = {
    "user": "who asks is not looked at",
    "safety_identifier": "who asks is not looked at",
    "metadata": "nothing is kept",
    "store": "nothing is kept",
    "service_tier": "there is one",
    "parallel_tool_calls": "there are no tools",
    "prediction": "it could only make the same answer faster",
    "prompt_cache_key": "it could only make the same answer faster",
    "prompt_cache_retention": "it could only make the same answer faster",
    "prompt_cache_options": "it could only make the same answer faster",
    "cache_prompt": "it could only make the same answer faster",
    "id_slot": "it could only make the same answer faster",
    "cache_salt": "it could only make the same answer faster",
    "priority": "rows are taken in the order in which they come",
    "request_id": "the header X-Request-ID sets it",
}
"""Fields that cannot change the answer, and why."""

_MODEL = "`model` takes the adapter's id or name"
_LENGTH, _FORMAT = "use max_tokens", "use response_format"
REFUSED: Mapping[str, Refused] = {
    "tools": Refused("no tools are called here", ([],)),
    "tool_choice": Refused("no tools are called here", ("none", "auto")),
    "functions": Refused("no tools are called here", ([],)),
    "function_call": Refused("no tools are called here", ("none", "auto")),
    "modalities": Refused("answers are text", (["text"],)),
    "audio": Refused("answers are text"),
    "web_search_options": Refused("nothing is searched"),
    "reasoning_effort": Refused("the bases do not reason", ("none",)),
    "verbosity": Refused("ask for it in a message", ("medium",)),
    "moderation": Refused("nothing is moderated"),
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
    "ignore_eos": Refused("an answer ends where the model ends it", (False,)),
    "min_tokens": Refused("an answer ends where the model ends it", (0,)),
    "include_stop_str_in_output": Refused("add the string to the answer", (False,)),
    "echo": Refused("put the message before the answer", (False,)),
    "best_of": Refused("use n", (1,)),
    "use_beam_search": Refused("answers are greedy or drawn", (False,)),
    "do_sample": Refused("temperature 0 is greedy"),
    "n_predict": Refused(_LENGTH),
    "num_predict": Refused(_LENGTH),
    "max_new_tokens": Refused(_LENGTH),
    "max_output_tokens": Refused(_LENGTH),
    "num_ctx": Refused("LLGBM_MAX_CONTEXT sets the context"),
    "options": Refused("temperature, top_p and the others stand in the request itself", ({},)),
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
"""Fields of OpenAI's and of other servers that are known and not done. Any other field is refused too."""

_OF_ADAPTERS = re.compile(r"lora|adapter|peft", re.IGNORECASE)

Bias = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
Length = Annotated[int, Field(ge=-1, lt=2**31)]


class StreamOptions(Strict):
    """What a stream tells besides its text."""

    model_config = example({"include_usage": True})
    include_usage: bool = Field(False, description="Send one last chunk with the token counts.")

    @model_validator(mode="before")
    @classmethod
    def _without_padding(cls, data: Any) -> Any:
        return without(data, frozenset({"include_obfuscation"}))


class ChatCompletionRequest(Strict):
    """A chat completion. A field that could change the answer and is not done here is refused."""

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
        description="The base's id, an adapter's id or name, `prompt:` and the description of a task, or `auto`: then "
        "the system message is the description.",
    )
    examples: Examples | None = Field(
        None,
        description=f"Not OpenAI's: up to {MAX_EXAMPLES} examples of the task, as in /chat, for `prompt:` and `auto`.",
    )
    context: ContextWanted | None = Field(
        None,
        description="Not OpenAI's: what stands in the context in addition to the messages, as in /chat, for `prompt:` "
        "and `auto`. Default auto.",
    )
    adapter_id: str | None = Field(
        None,
        min_length=1,
        max_length=64,
        description="Id or name of an adapter, as in /chat. Then `model` is the base, or the same adapter.",
    )
    messages: list[Message] = Field(
        min_length=1, max_length=256, description="The conversation. Calls of tools and their results are rendered."
    )
    add_generation_prompt: bool | None = Field(None, description="False: no head of the assistant's turn at the end.")
    continue_final_message: bool | None = Field(
        None, description="The answer goes on from the last message, which is the assistant's."
    )
    stream: bool | None = Field(None, description="Send the answer in events as it is made.")
    stream_options: StreamOptions | None = Field(None, description="Only with stream.")
    max_tokens: Length | None = Field(
        None, description="Most tokens of the answer; cut at what the context has left, which -1 asks for."
    )
    max_completion_tokens: Length | None = Field(None, description="The newer name of max_tokens.")
    temperature: Temperature | None = Field(None, description="Default 1; 0 takes the likeliest token.")
    top_p: TopP | None = Field(None, description="Nucleus that is drawn from; 0 takes the likeliest token.")
    top_k: int | None = Field(
        None, ge=-1, lt=2**31, description="So many of the likeliest tokens are drawn from; 0 or -1 for all."
    )
    min_p: float | None = Field(
        None, ge=0, le=1, description="Tokens with less than this part of the likeliest one's probability are left out."
    )
    repetition_penalty: float | None = Field(
        None, gt=0, le=100, description="Above 1: tokens of the prompt and of the answer become less likely."
    )
    presence_penalty: Penalty | None = Field(None, description="Above 0: tokens of the answer become less likely.")
    frequency_penalty: Penalty | None = Field(None, description="The same, once for each time they were there.")
    logit_bias: dict[Annotated[int, Field(ge=0, lt=2**31)], Bias] | None = Field(
        None, max_length=1024, description="Numbers that are added to the logits of tokens, by their ids."
    )
    seed: Seed | None = Field(None, description="The same seed gives the same answer.")
    stop: str | list[str] | None = Field(None, description="Strings that end the answer, up to 16.")
    n: int | None = Field(None, ge=1, description="Answers to the same prompt; their seeds follow each other.")
    logprobs: bool | None = Field(
        None, description="Log probabilities by the model itself, before anything that changes a choice."
    )
    top_logprobs: int | None = Field(None, ge=0, le=20, description="Only with logprobs.")
    response_format: ResponseFormat | None = Field(
        None, description="text, json_object or json_schema. An answer that is not cut off is valid."
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
            known = "is not supported" if refused is not None else "is not known here"
            raise ApiError(400, f"the field {name[:64]!r} {known}: {hint}", param=name[:64])
        return given

    @model_validator(mode="after")
    def _fields_that_go_together(self) -> ChatCompletionRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise ApiError(400, "top_logprobs needs logprobs: true", param="top_logprobs")
        if self.stream_options is not None and not self.stream:
            raise ApiError(400, "stream_options needs stream: true", param="stream_options")
        if len(self.stops) > 16 or not all(self.stops):
            raise ApiError(400, "stop is one string or up to 16, none of them empty", param="stop")
        for name in ("max_tokens", "max_completion_tokens"):
            if getattr(self, name) == 0:
                raise ApiError(400, f"{name} is 1 or more, or -1 for all that is left of the context", param=name)
        if self.continue_final_message:
            if self.add_generation_prompt:
                raise ApiError(
                    400,
                    "continue_final_message goes on inside the last message, so add_generation_prompt must be false",
                    param="add_generation_prompt",
                )
            if self.messages[-1].role != "assistant":
                raise ApiError(
                    400,
                    "continue_final_message goes on from a message of the assistant, and the last one is another's",
                    param="continue_final_message",
                )
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        """All stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


def fields_table() -> str:
    """What becomes of each field, as a Markdown table."""

    def row(name: str, kind: str, text: str) -> str:
        return f"| `{name}` | {kind} | {text.rstrip('.').replace('|', chr(92) + '|')} |"

    lines = ["| field | here | meaning, why it changes nothing, or what to do instead |", "|---|---|---|"]
    lines += [row(name, "done", field.description or "") for name, field in ChatCompletionRequest.model_fields.items()]
    lines += [row(name, "ignored", why) for name, why in IGNORED.items()]
    for name, refused in REFUSED.items():
        neutral = ", ".join(f"`{json.dumps(value)}`" for value in refused.neutral)
        lines.append(row(name, "400", refused.instead + (f"; taken: {neutral}" if neutral else "")))
    lines.append("| any other | 400 | it is not known here; null is taken |")
    return "\n".join(lines) + "\n"
