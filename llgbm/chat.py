"""Inputs and answers of a task as token ids, by the base's chat template: in training, evaluation and serving."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llgbm.errors import ConfigError

END_OF_TURN = "<|im_end|>"


def prompt_ids(tokenizer: Any, messages: Sequence[Mapping[str, str]]) -> tuple[int, ...]:
    """Token ids of a conversation up to the assistant's turn, default system message included."""
    ids = tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, return_dict=False)
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


def with_description(messages: Sequence[tuple[str, str]], description: str) -> list[tuple[str, str]]:
    """A conversation of (role, text) with the description above the first user turn, as in `task_messages`.

    Raises:
        ConfigError: there is no user turn.
    """
    first = next((place for place, (role, _) in enumerate(messages) if role == "user"), None)
    if first is None:
        raise ConfigError("the description goes above the user's first turn, and there is none")
    role, text = messages[first]
    return [*messages[:first], (role, _preamble(description) + text), *messages[first + 1 :]]


def _preamble(description: str | None) -> str:
    """The text above an input: the description and an empty line, or nothing."""
    return f"{description}\n\n" if description else ""


def answer_ids(tokenizer: Any, answer: str) -> tuple[int, ...]:
    """Token ids of an assistant's turn, end-of-turn token included.

    Appended to `prompt_ids` they equal the template of the whole conversation, unless the answer starts with white
    space that the tokenizer would merge with the preceding line break.
    """
    return (*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.convert_tokens_to_ids(END_OF_TURN))
