"""What tests of the sampler draw from: three tasks of words, and ways to read a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from llgbm.base import Base
from llgbm.packed.batch import TaskGroup
from llgbm.prompting import TextEncoder
from llgbm.text_encoder import PretrainedTextEncoder
from training.recipe.sampler import SamplerConfig, TaskSampler
from training.tasks.format import Example, Task

WORDS = ("cat", "dog", "cow", "pig", "hen", "owl", "ant", "bee", "fox", "bat", "rat", "eel")
TEST_WORDS = ("emu", "yak", "ape", "cod")


def task(name: str, verb: str, answer: Any) -> Task:
    rows, held_back = ([Example(word, answer(word)) for word in words] for words in (WORDS, TEST_WORDS))
    wordings = tuple(f"{start} {verb}." for start in ("Now", "Please", "You", "I want you to", "Your task:"))
    return Task(
        name, "words", "made for tests", "CC0-1.0", wordings, "exact_match", None, tuple(rows), tuple(held_back)
    )


TASKS = [
    task("upper", "write in capitals", str.upper),
    task("first", "give the first letter", lambda w: w[0]),
    task("reverse", "spell it backwards", lambda w: w[::-1]),
]
CONFIG = SamplerConfig(groups=4, tokens_per_group=220, max_row_tokens=100)


class Recorder:
    """The tiny encoder, and all that it was given."""

    def __init__(self, encoder: PretrainedTextEncoder) -> None:
        self.encoder, self.seen = encoder, list[str]()

    def encode(self, texts: Sequence[str]) -> Tensor:
        self.seen.extend(texts)
        return self.encoder.encode(texts)


def sampler_of(base: Base, encoder: Any, seed: int = 0, tasks: Sequence[Task] = TASKS, **changes: Any) -> TaskSampler:
    return TaskSampler(tasks, base, encoder, replace(CONFIG, **changes), seed)


def content(batch: Sequence[TaskGroup]) -> list[tuple[Any, ...]]:
    return [
        (
            group.task_id,
            None if group.condition is None else tuple(group.condition.tolist()),
            [(tuple(row.prompt), tuple(row.answer)) for row in group.rows],
        )
        for group in batch
    ]


def groups_of(sampler: TaskSampler, steps: int) -> list[TaskGroup]:
    return [group for step in range(steps) for group in sampler(step)]


def in_context(base: Base, group: TaskGroup) -> bool:
    """Whether the rows carry a description, all of them the same one."""
    texts = [base.tokenizer.decode(row.prompt) for row in group.rows]
    found = {wording for t in TASKS for wording in t.descriptions for text in texts if f"{wording}\n\n" in text}
    assert len(found) <= 1
    assert all((not found) or f"{next(iter(found))}\n\n" in text for text in texts)
    return bool(found)


def initials(base: Base, group: TaskGroup) -> str:
    """First letters of the inputs of a group, in order."""
    texts = [base.tokenizer.decode(row.prompt) for row in group.rows]
    return "".join(text.split("<|im_end|>")[1].splitlines()[-1][0] for text in texts)


def nearest(condition: Tensor, encoder: TextEncoder) -> tuple[str, float]:
    """The training description nearest to a condition: its task and the cosine."""
    cosines = {t.task_id: float((encoder.encode(t.seen_descriptions) @ condition).max()) for t in TASKS}
    best = max(cosines, key=cosines.__getitem__)
    return best, cosines[best]
