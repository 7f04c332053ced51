"""Finds the task in a conversation: its description and examples. The other turns are the conversation proper.

With `model: "auto"` the description is the system message. If there are several, the last one counts, and earlier ones
are left out; the turns before it stay. System messages directly after each other are joined. Examples are pairs of
turns named `example_user` and `example_assistant`. Other turns never make an adapter, since their answers may come from
any source.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from service.errors import ApiError

MAX_EXAMPLES = 16
ExampleName = Literal["example_user", "example_assistant"]
"""Values of `name` that mark the two sides of an example, as in OpenAI's guides."""
EXAMPLE_NAMES: tuple[ExampleName, ...] = get_args(ExampleName)
_GIVEN, _WANTED = EXAMPLE_NAMES


@dataclass(frozen=True)
class TaskTexts:
    """The texts of a task, and the conversation without them.

    Attributes:
        description: None if there is none.
        examples: (input, output) pairs.
        messages: as a chat template reads them.
        start: index of the first message after the description.
    """

    description: str | None
    examples: tuple[tuple[str, str], ...]
    messages: tuple[Mapping[str, Any], ...]
    start: int = 0


def with_marked_examples(task: TaskTexts) -> TaskTexts:
    """The task with the named turns of its messages as examples.

    Raises:
        ApiError: 422, one side of an example is missing, or there are too many.
    """
    marked = [message for message in task.messages if message.get("name") in EXAMPLE_NAMES]
    names = [message["name"] for message in marked]
    if names != [_GIVEN, _WANTED] * (len(marked) // 2):
        raise ApiError(
            422,
            f"messages named {_GIVEN} and {_WANTED} must come in pairs, in this order; complete them",
            param="messages",
        )
    texts = [message["content"] for message in marked]
    examples = (*task.examples, *zip(texts[::2], texts[1::2], strict=True))
    if len(examples) > MAX_EXAMPLES:
        raise ApiError(422, f"a task has at most {MAX_EXAMPLES} examples, not {len(examples)}", param="messages")
    kept = [(place, message) for place, message in enumerate(task.messages) if message.get("name") not in EXAMPLE_NAMES]
    start = sum(place < task.start for place, _ in kept)
    return TaskTexts(task.description, examples, tuple(message for _, message in kept), start)


def with_system_message(task: TaskTexts) -> TaskTexts:
    """The task with its last system message as description, and without earlier ones; unchanged if all are empty."""
    system = {place for place, message in enumerate(task.messages) if message["role"] == "system"}
    places = [place for place in sorted(system) if task.messages[place]["content"].strip()]
    if not places:
        return task
    last = first = places[-1]
    while first - 1 in places:
        first -= 1
    description = "\n\n".join(message["content"] for message in task.messages[first : last + 1])
    earlier = tuple(task.messages[place] for place in range(first) if place not in system)
    later = tuple(task.messages[place] for place in range(last + 1, len(task.messages)) if place not in system)
    return TaskTexts(description, task.examples, (*earlier, *later), len(earlier))
