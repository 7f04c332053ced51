"""Family `animals`: what is known of an animal, all asked about the same inputs.

Every third animal stands in test rows only.
"""

from __future__ import annotations

import random

from training.tasks.procedural.recipes import Family, Inputs
from training.tasks.procedural.words import ANIMAL_KINDS, CATEGORIES, split_words, with_article


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_GROUNDED = ("penguin", "ostrich")
_CANNOT_SAY_IF_FLYING = ("ant", "flea", "termite", "cockroach", "aphid", "grasshopper")
_LEGLESS = ("snake", "cobra", "viper", "rattlesnake")
_LARGE = _words(
    """horse cow lion tiger bear elephant giraffe zebra camel panda buffalo moose shark crocodile alligator deer leopard
    donkey ostrich"""
)
_ABOUT_A_DOG = _words(
    """dog wolf sheep goat pig kangaroo otter beaver badger tuna stingray swordfish sturgeon catfish salmon pike cod
    halibut swan pelican stork heron flamingo turtle tortoise iguana"""
)
_FORMS = ("the {0} {1}", "{2} {1}", "we saw {2} {1}", "my photo of {2} {1}", "{2} {1} in a film", "this {0} {1}")
_ADJECTIVES = ("old", "young", "hungry", "tired", "noisy", "quiet", "lovely", "strange", "famous", "clever")


def _draw(rng: random.Random, test: bool) -> tuple[str, tuple[str, str]]:
    kind = rng.choice(ANIMAL_KINDS)
    animal = rng.choice(split_words(CATEGORIES[kind], test=test))
    adjective = rng.choice(_ADJECTIVES)
    return rng.choice(_FORMS).format(adjective, animal, with_article(adjective)), (animal, kind)


ANIMAL = Inputs("animal", "a few words that name an animal|a phrase with an animal in it", _draw, keeps_words=True)


def animals() -> Family:
    """A phrase with an animal in, the animal or what is known of it out."""
    family = Family("animals")
    family.open("name", ANIMAL, lambda v: v[0], "copy the name of the animal from the phrase", "the animal alone")
    family.open("shout", ANIMAL, lambda v: v[0].upper(), "write the animal in capitals", "the animal in upper case")
    family.open(
        "letters",
        ANIMAL,
        lambda v: str(len(v[0])),
        "count the letters of the animal",
        "the number of letters in the animal's name",
    )
    for name, rule, do, give, labels in (
        ("kind", lambda v: v[1], "say which kind of animal it is", "the kind of the animal", ANIMAL_KINDS),
        ("legs", _legs, "say how many legs the animal has", "the number of the animal's legs", ("0", "2", "4", "6")),
        (
            "cover",
            _cover,
            "say what covers the animal's body",
            "what is on the animal's skin",
            ("hair", "feathers", "scales", "shell"),
        ),
    ):
        family.labelled(name, ANIMAL, rule, do, give, labels)
    for name, holds, that, question in (
        ("flies", _flies, "the animal can fly", "Can the animal fly?"),
        ("backbone", lambda v: v[1] != "insect", "the animal has a backbone", "Does the animal have a backbone?"),
        ("feathers", lambda v: v[1] == "bird", "the animal has feathers", "Does the animal have feathers?"),
        ("milk", lambda v: v[1] == "mammal", "the animal gives its young milk", "Does the animal give its young milk?"),
        ("large", _is_large, "the animal, once grown, is larger than a dog", "Is the grown animal larger than a dog?"),
    ):
        family.asks(name, ANIMAL, holds, that, question)
    return family


def _legs(value: tuple[str, str]) -> str | None:
    animal, kind = value
    if animal == "kangaroo":  # people do not agree
        return None
    if animal in _LEGLESS:
        return "0"
    return {"mammal": "4", "bird": "2", "fish": "0", "insect": "6", "reptile": "4"}[kind]


def _cover(value: tuple[str, str]) -> str | None:
    animal, kind = value
    if animal in ("elephant", "hedgehog"):  # hardly any hair, and spines
        return None
    if animal in ("turtle", "tortoise"):
        return "shell"
    return {"mammal": "hair", "bird": "feathers", "reptile": "scales"}.get(kind)


def _flies(value: tuple[str, str]) -> bool | None:
    animal, kind = value
    if animal in _CANNOT_SAY_IF_FLYING:
        return None
    return kind in ("bird", "insect") and animal not in _GROUNDED


def _is_large(value: tuple[str, str]) -> bool | None:
    return None if value[0] in _ABOUT_A_DOG else value[0] in _LARGE
