"""Texts that ask for no task: gibberish and small talk.

A generator makes some adapter for any text, and a wrong one changes the base's answers for nothing. From these texts
the detector of `training.recipe.task_detector` learns when to leave the base alone. Bare inputs of tasks are not among
them: words such as "French" stand in inputs too, and a user who types them means something.
"""

from __future__ import annotations

import random
import string

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


def null_prompts(count: int, seed: int) -> list[str]:
    """`count` texts, the same for a seed: by turns gibberish and small talk."""
    rng = random.Random(seed)
    return [rng.choice(SMALL_TALK) if i % 2 else gibberish(rng) for i in range(count)]


def gibberish(rng: random.Random) -> str:
    """One to seven words of random keys, syllables or letters, or of one key held down."""
    kind, words = rng.randrange(4), rng.randint(1, 7)
    if kind == 0:
        return " ".join("".join(rng.choices(_KEYS, k=rng.randint(2, 9))) for _ in range(words))
    if kind == 1:
        return " ".join("".join(rng.choices(_SYLLABLES, k=rng.randint(1, 4))) for _ in range(words))
    if kind == 2:
        return " ".join("".join(rng.choices(string.ascii_lowercase, k=rng.randint(2, 8))) for _ in range(words))
    return " ".join(rng.choice(_KEYS) * rng.randint(1, 5) for _ in range(words))
