"""How a task's input and answer become token ids: by the base's own chat template, in training, evaluation and use."""

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

    With a description, it stands above the input in the user's turn; examples are earlier turns of the conversation.
    """
    head = _head(description)
    messages: list[dict[str, str]] = []
    for example_input, example_output in examples:
        messages.append({"role": "user", "content": head + example_input})
        messages.append({"role": "assistant", "content": example_output})
    messages.append({"role": "user", "content": head + given})
    return messages


def with_description(messages: Sequence[Mapping[str, Any]], description: str) -> list[Mapping[str, Any]]:
    """A conversation with a description above the first turn of the user, as in `task_messages`.

    Raises:
        ConfigError: the user has no turn.
    """
    first = next((place for place, message in enumerate(messages) if message["role"] == "user"), None)
    if first is None:
        raise ConfigError("the description stands above the user's first turn, and there is none")
    described = {**messages[first], "content": _head(description) + messages[first]["content"]}
    return [*messages[:first], described, *messages[first + 1 :]]


def _head(description: str | None) -> str:
    """What stands above an input: the description and an empty line, or nothing."""
    return f"{description}\n\n" if description else ""


def answer_ids(tokenizer: Any, answer: str) -> tuple[int, ...]:
    """Token ids of an assistant's turn, end of turn included.

    They follow `prompt_ids` as in the template of the whole conversation, unless the answer begins with white space
    that the tokenizer would join with the line break before it.
    """
    return (*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.convert_tokens_to_ids(END_OF_TURN))
