"""Probe texts: inputs for a base and an adapted base, to see how the adapter moves the hidden states.

A `ProbeSet` decides exactly which text the model reads: texts, their order, chat or raw form, system message, length
limit. Generic probes belong to no task, domain probes to one kind of task, and mixed probes come from all of them.
Most are bare inputs without an instruction, since there the adapter must act alone. Every function here is
deterministic: the same arguments give the same probes on any machine.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from llgbm.errors import ConfigError

_GENERIC = (
    "The",
    "Hello there.",
    "Please help me with this.",
    "What do you think about it?",
    "In the morning the old man walked down to the harbour.",
    "Here is the text you asked for.",
    "Answer in one word.",
    "The results were not what anyone had expected.",
    "Tell me more about that.",
    "1 2 3 4",
    "Rain is expected in the north by the evening.",
    "Why does this happen?",
    "She opened the letter and read it twice.",
    "Yes, of course.",
    "Write a short reply.",
    "The new rules apply to everyone from next year.",
)

_DOMAINS: dict[str, tuple[str, ...]] = {
    "math": (
        "17 + 26",
        "A box holds 12 eggs. How many eggs are in 7 boxes?",
        "What is 15% of 80?",
        "Solve for x: 3x - 4 = 11",
        "Tom had 40 stamps and gave a quarter of them away. How many are left?",
        "Is 91 a prime number?",
        "144 / 12",
        "The sides of a rectangle are 5 cm and 8 cm. What is its area?",
    ),
    "code": (
        "def reverse(text):",
        "for i in range(3): print(i * i)",
        "SELECT name FROM users WHERE age > 30",
        "What does len([1, [2, 3]]) return?",
        "while x > 0: x =- 1",
        "git commit -m 'fix the login page'",
        "Write a function that counts the vowels in a string.",
        "TypeError: 'NoneType' object is not subscriptable",
    ),
    "translation": (
        "The cat sleeps on the chair.",
        "Where is the railway station?",
        "bread",
        "I would like a cup of coffee, please.",
        "Das Wetter ist heute schön.",
        "Je ne comprends pas la question.",
        "¿Cuánto cuesta este libro?",
        "We will meet tomorrow at eight.",
    ),
    "sentiment": (
        "I loved every minute of this film.",
        "The soup was cold and the waiter was rude.",
        "It does what it says, nothing more.",
        "Worst purchase I have made in years.",
        "The plot is thin, but the acting saves it.",
        "My order came two weeks late and broken.",
        "What a wonderful surprise, thank you!",
        "I am not sure how I feel about the new design.",
    ),
    "facts": (
        "What is the capital of Australia?",
        "Who wrote Pride and Prejudice?",
        "Water boils at 100 degrees Celsius at sea level.",
        "Which planet is the largest?",
        "The Great Wall can be seen from the Moon.",
        "In which year did the Berlin Wall fall?",
        "How many legs does a spider have?",
        "Mount Kilimanjaro is in Kenya.",
    ),
    "strings": (
        "banana",
        "Hello World",
        "pear, apple, fig, cherry",
        "MiXeD cAsE tExT",
        "racecar",
        "2024-03-17",
        "the quick brown fox jumps over the lazy dog",
        "a1b2c3",
    ),
    "logic": (
        "All cats are animals. Tom is a cat. Is Tom an animal?",
        "If it rains, the street is wet. The street is dry. Did it rain?",
        "Anna is taller than Ben. Ben is taller than Carl. Who is the shortest?",
        "True and (False or not False)",
        "2, 4, 8, 16, ?",
        "Some birds cannot fly. Does it follow that penguins cannot fly?",
        "Monday is two days after Saturday.",
        "Either the key is in the bag or it is lost. It is not in the bag.",
    ),
    "grammar": (
        "She go to school every day.",
        "There is many reasons for this.",
        "mouse",
        "They was happy yesterday",
        "run",
        "I have saw that movie before.",
        "happy",
        "Its raining, lets stay inside",
    ),
    "intent": (
        "Book a table for two at seven tonight.",
        "Play some jazz in the kitchen.",
        "My card was charged twice for the same order.",
        "Will it snow in Oslo this weekend?",
        "Remind me to call the dentist on Friday.",
        "How do I reset my password?",
        "Turn off the lights in the bedroom.",
        "I want to cancel my subscription.",
    ),
    "reading": (
        "Maria moved to Lisbon in 2019. A year later she opened a bakery. Where is the bakery?",
        "The museum is closed on Mondays. Today is Monday. Can I visit it?",
        "Scientists found that sleep helps memory. People who slept eight hours remembered more words.",
        "The train leaves at 9:40 and arrives at 11:10. How long is the trip?",
        "Paul gave the ball to Eva because she asked for it. Who asked for the ball?",
        "Prices rose by three percent in May, the sharpest rise in two years, the bank said on Tuesday.",
        "A recipe needs two cups of flour, one egg and a pinch of salt. How many eggs?",
        "The river flooded the lower town, but the church on the hill stayed dry.",
    ),
}

DOMAINS: tuple[str, ...] = tuple(_DOMAINS)
"""The domains of `create_domain_probes`."""


@dataclass(frozen=True)
class ProbeSet:
    """Texts and the form in which a model reads them.

    Attributes:
        texts: the probes, in order.
        chat: True: each text is a user turn in the chat template, measured at the end of the assistant's header.
            False: the bare text, measured at its last token.
        max_length: limit of a whole probe in tokens, template included. Longer texts lose their middle.
        system: the system message of chat probes; None for the template's default.

    Raises:
        ConfigError: no texts, an empty text, a limit below 1, or a system message for raw probes.
    """

    texts: tuple[str, ...]
    chat: bool = True
    max_length: int = 96
    system: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "texts", tuple(self.texts))
        if not self.texts or not all(isinstance(t, str) and t.strip() for t in self.texts):
            raise ConfigError("a probe set needs at least one text, and no text may be empty")
        if self.max_length < 1:
            raise ConfigError(f"max_length of probes must be at least 1 token, not {self.max_length}")
        if self.system is not None and not self.chat:
            raise ConfigError("raw probes have no system message; leave system out or set chat=True")

    def __len__(self) -> int:
        return len(self.texts)

    def digest(self) -> str:
        """Hex sha256 of all fields, order included."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "texts": list(self.texts)}


def create_generic_probes(count: int | None = None, *, chat: bool = True, max_length: int = 96) -> ProbeSet:
    """The first `count` probes that belong to no task, or all of them.

    Raises:
        ConfigError: `count` is below 1 or above the number of texts.
    """
    return ProbeSet(_first(_GENERIC, count, "generic"), chat, max_length)


def create_domain_probes(domain: str, count: int | None = None, *, chat: bool = True, max_length: int = 96) -> ProbeSet:
    """The first `count` probes of one of `DOMAINS`, or all of them.

    Raises:
        ConfigError: there is no such domain, or `count` is below 1 or above the domain's number of texts.
    """
    if domain not in _DOMAINS:
        raise ConfigError(f"unknown probe domain {domain!r}; known are {', '.join(DOMAINS)}")
    return ProbeSet(_first(_DOMAINS[domain], count, domain), chat, max_length)


def create_mixed_probes(
    count: int = 32,
    *,
    domains: Iterable[str] = DOMAINS,
    generic: bool = True,
    seed: int = 0,
    chat: bool = True,
    max_length: int = 96,
) -> ProbeSet:
    """`count` different probes, drawn in turn from each domain and from the generic texts.

    Args:
        seed: of the draw.

    Raises:
        ConfigError: an unknown domain, or fewer texts than `count`.
    """
    pools = [list(create_domain_probes(d).texts) for d in dict.fromkeys(domains)]
    pools += [list(_GENERIC)] if generic else []
    available = sum(map(len, pools))
    if not 1 <= count <= available:
        raise ConfigError(f"{count} mixed probes asked for; these domains have 1 to {available}")
    rng = random.Random(seed)
    for pool in pools:
        rng.shuffle(pool)
    rng.shuffle(pools)
    turns = [pool[turn] for turn in range(max(map(len, pools))) for pool in pools if turn < len(pool)]
    return ProbeSet(tuple(turns[:count]), chat, max_length)


def _first(texts: tuple[str, ...], count: int | None, name: str) -> tuple[str, ...]:
    if count is None:
        return texts
    if not 1 <= count <= len(texts):
        raise ConfigError(f"{count} {name} probes asked for; there are 1 to {len(texts)}")
    return texts[:count]
