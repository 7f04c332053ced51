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
) -> list[dict[str, Any]]:
    """The conversation that asks for an answer to `given`.

    The description goes above the input in every user turn. Examples become earlier turns.
    """
    return in_context([{"role": "user", "content": given}], description=description, examples=examples)


def in_context(
    messages: Sequence[Mapping[str, Any]],
    *,
    description: str | None = None,
    examples: Sequence[tuple[str, str]] = (),
    start: int = 0,
) -> list[dict[str, Any]]:
    """A conversation with the description and the examples of a task in it, in training, evaluation and serving.

    The description goes above the first user turn from `start` on. Examples become turns before this turn, also with
    the description above each input.

    Raises:
        ConfigError: there is a text to put in, and no user turn.
    """
    turns = [dict(message) for message in messages]
    if description is None and not examples:
        return turns
    first = next((place for place in range(start, len(turns)) if turns[place]["role"] == "user"), None)
    if first is None:
        raise ConfigError("the task's texts go above a turn of the user, and there is none")
    head = f"{description}\n\n" if description else ""
    shown = [
        {"role": role, "content": text}
        for given, wanted in examples
        for role, text in (("user", head + given), ("assistant", wanted))
    ]
    asked = {**turns[first], "content": head + turns[first]["content"]}
    return [*turns[:first], *shown, asked, *turns[first + 1 :]]


def answer_ids(tokenizer: Any, answer: str) -> tuple[int, ...]:
    """Token ids of an assistant's turn, end-of-turn token included.

    Appended to `prompt_ids` they equal the template of the whole conversation, unless the answer starts with white
    space that the tokenizer would merge with the preceding line break.
    """
    return (*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.convert_tokens_to_ids(END_OF_TURN))
