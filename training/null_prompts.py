"""Texts that are no task: gibberish, small talk, and bare inputs of tasks.

A generator that never met such a text makes some adapter for it, and a wrong one changes the base's answers for
nothing. Trained on these, it learns to leave the base alone where a prompt asks for nothing.
"""

from __future__ import annotations

import random
import string
from collections.abc import Callable, Sequence

from training.tasks import Task

SMALL_TALK = (
    "hello", "hi there", "good morning", "how are you?", "thanks", "thank you very much", "ok", "yes", "no", "maybe",
    "never mind", "what?", "hmm", "see you later", "nice weather today", "I am tired", "who are you?", "test",
    "testing", "asdf", "foo bar baz", "lol", "please", "sorry", "good job", "I don't know", "what do you think?",
    "tell me more", "...", "?", "nothing", "bye", "my name is Sam", "it is late", "I like trains", "that was fun",
    "let's go", "the adapter", "something", "do it", "a task", "whatever", "do nothing", "no task",
    "leave everything as it is",
)  # fmt: skip

_SYLLABLES = tuple(consonant + vowel for consonant in "bcdfgklmnprstvwz" for vowel in "aeiou")
_KEYS = string.ascii_lowercase + string.digits + "#%/&+=-_;:!?"


def null_prompts(tasks: Sequence[Task], count: int, seed: int) -> list[str]:
    """`count` texts, the same for a seed: a third gibberish, a third small talk, a third inputs of `tasks`' rows.

    Only training rows are read.
    """
    rng = random.Random(seed)
    sources: tuple[Callable[[], str], ...] = (
        lambda: _gibberish(rng),
        lambda: rng.choice(SMALL_TALK),
        lambda: rng.choice(rng.choice(tasks).train).input,
    )
    return [sources[i % len(sources)]() for i in range(count)]


def _gibberish(rng: random.Random) -> str:
    kind, words = rng.randrange(4), rng.randint(1, 7)
    if kind == 0:
        return " ".join("".join(rng.choices(_KEYS, k=rng.randint(2, 9))) for _ in range(words))
    if kind == 1:
        return " ".join("".join(rng.choices(_SYLLABLES, k=rng.randint(1, 4))) for _ in range(words))
    if kind == 2:
        return " ".join("".join(rng.choices(string.ascii_lowercase, k=rng.randint(2, 8))) for _ in range(words))
    return " ".join(rng.choice(_KEYS) * rng.randint(1, 5) for _ in range(words))
