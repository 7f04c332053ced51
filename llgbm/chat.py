"""Inputs and answers of a task as token ids, by the base's chat template: in training, evaluation and serving."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llgbm.errors import ConfigError

END_OF_TURN = "<|im_end|>"


def prompt_ids(
    tokenizer: Any,
    messages: Sequence[Mapping[str, Any]],
    *,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
) -> tuple[int, ...]:
    """Token ids of a conversation up to where the assistant speaks, default system message included.

    Args:
        tokenizer: with the base's chat template.
        messages: in the form that the template knows: `role`, `content`, `tool_calls`.
        add_generation_prompt: end with the head of the assistant's turn.
        continue_final_message: end inside the last message, so that the answer goes on from its text; then there is no
            head after it.
    """
    ids = tokenizer.apply_chat_template(
        list(messages),
        add_generation_prompt=add_generation_prompt and not continue_final_message,
        continue_final_message=continue_final_message,
        return_dict=False,
    )
    return tuple(ids)


def task_messages(
    given: str, *, description: str | None = None, examples: Sequence[tuple[str, str]] = ()
) -> list[dict[str, str]]:
    """The conversation that asks for an answer to `given`.

    The description goes above the input in every user turn. Examples become earlier turns.
    """
    head = _preamble(description)
    messages: list[dict[str, str]] = []
    for example_input, example_output in examples:
        messages.append({"role": "user", "content": head + example_input})
        messages.append({"role": "assistant", "content": example_output})
    messages.append({"role": "user", "content": head + given})
    return messages


def with_description(messages: Sequence[Mapping[str, Any]], description: str) -> list[Mapping[str, Any]]:
    """A conversation with a description above the first turn of the user, as in `task_messages`.

    Raises:
        ConfigError: there is no user turn.
    """
    first = next((place for place, message in enumerate(messages) if message["role"] == "user"), None)
    if first is None:
        raise ConfigError("the description goes above the user's first turn, and there is none")
    described = {**messages[first], "content": _preamble(description) + messages[first]["content"]}
    return [*messages[:first], described, *messages[first + 1 :]]


def _preamble(description: str | None) -> str:
    """The text above an input: the description and an empty line, or nothing."""
    return f"{description}\n\n" if description else ""


def answer_ids(tokenizer: Any, answer: str) -> tuple[int, ...]:
    """Token ids of an assistant's turn, end-of-turn token included.

    Appended to `prompt_ids` they equal the template of the whole conversation, unless the answer starts with white
    space that the tokenizer would merge with the preceding line break.
    """
    return (*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.convert_tokens_to_ids(END_OF_TURN))
