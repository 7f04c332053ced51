"""Families `name_category`, `is_category`, `count_category`, `pick_category`, `odd_one`, `animals`: kinds of things.

Every third word of a category occurs only in test rows, so these tasks test the base's knowledge of a word.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from training.tasks.procedural.recipes import Family, Inputs, bind
from training.tasks.procedural.words import ANIMAL_KINDS, CATEGORIES, plural, split_words, with_article

TOPICS: dict[str, tuple[str, ...]] = {
    name: words for name, words in CATEGORIES.items() if name not in ANIMAL_KINDS and name != "colour"
} | {"animal": tuple(word for kind in ANIMAL_KINDS for word in CATEGORIES[kind])}
"""Words by category, with one category for all animals. Without colours, since plum and rose are also colours."""

_PAIRS = (
    ("fruit", "vegetable"), ("animal", "vehicle"), ("tool", "kitchen item"), ("drink", "dish"), ("job", "sport"),
    ("tree", "flower"), ("building", "room"), ("metal", "shape"), ("feeling", "weather word"),
    ("piece of clothing", "body part"), ("piece of furniture", "musical instrument"), ("animal", "fruit"),
    ("vehicle", "building"), ("job", "tool"), ("vegetable", "tree"), ("sport", "feeling"),
)  # fmt: skip
_CODED = (
    ("fruit", "animal", "1", "2"), ("vegetable", "metal", "A", "B"), ("vehicle", "animal", "M", "L"),
    ("sport", "job", "left", "right"), ("tool", "drink", "X", "Y"), ("tree", "vehicle", "0", "1"),
    ("dish", "building", "eat", "visit"), ("drink", "flower", "glass", "vase"), ("job", "animal", "who", "what"),
    ("piece of clothing", "kitchen item", "wardrobe", "kitchen"), ("body part", "tool", "human", "machine"),
    ("shape", "feeling", "geometry", "heart"),
)  # fmt: skip
_GROUPS = (
    ("mammal", "bird", "fish", "insect"),
    ("fruit", "vegetable", "drink", "dish"),
    ("tool", "vehicle", "building", "musical instrument"),
    ("job", "sport", "feeling"),
    ("tree", "flower", "animal"),
    ("metal", "shape", "weather word"),
)


def _words_of(category: str, test: bool) -> tuple[str, ...]:
    return split_words(TOPICS.get(category) or CATEGORIES[category], test=test)


def _same_kind(categories: tuple[str, ...]) -> Inputs:
    """One to three words of one of the categories; the value is that category."""

    def draw(rng: random.Random, test: bool) -> tuple[str, str]:
        category = rng.choice(categories)
        known = _words_of(category, test)
        words = rng.sample(known, min(rng.choice((1, 2, 2, 3)), len(known)))
        return ", ".join(words), category

    return Inputs(
        "/".join(categories),
        "one to three words of one kind|one or more words of the same kind",
        draw,
        keeps_words=True,
    )


def _mixed(category: str) -> Inputs:
    """Three to five words, about half of them of the category; the value tells for each whether it belongs to it."""

    def draw(rng: random.Random, test: bool) -> tuple[str, list[tuple[str, bool]]]:
        others = [name for name in TOPICS if name != category]
        size = rng.randint(3, 5)
        mine = rng.sample(_words_of(category, test), min(rng.randint(0, size), 3))
        rest: list[str] = []
        while len(mine) + len(rest) < size:
            word = rng.choice(_words_of(rng.choice(others), test))
            if word not in rest:
                rest.append(word)
        words = [(word, True) for word in mine] + [(word, False) for word in rest]
        rng.shuffle(words)
        return ", ".join(word for word, _ in words), words

    return Inputs(f"mixed/{category}", "a list of words|some words of different kinds", draw, keeps_words=True)


def _draw_odd(rng: random.Random, test: bool) -> tuple[str, dict[str, Any]]:
    most, odd = rng.sample(sorted(TOPICS), 2)
    words = rng.sample(_words_of(most, test), rng.choice((2, 3)))
    stranger = rng.choice(_words_of(odd, test))
    place = rng.randrange(len(words) + 1)
    words.insert(place, stranger)
    return ", ".join(words), {"words": words, "place": place, "most": most, "odd": odd}


ODD = Inputs(
    "odd_one",
    "words of one kind and one that does not fit|a list of words with one outsider",
    _draw_odd,
    keeps_words=True,
)


def name_category() -> Family:
    """Input: words of one kind. Answer: the kind, by its own name or another."""
    family = Family("name_category")
    for first, second in _PAIRS:
        family.either(
            f"{first}_or_{second}".replace(" ", "_"),
            bind(first, lambda value, first: value == first),
            f"the input names {plural(first)}",
            f"the input names {plural(second)}",
            (first, second),
            inputs=_same_kind((first, second)),
        )
    for first, second, one, two in _CODED:
        family.either(
            f"{first}_{one}_{second}_{two}".replace(" ", "_"),
            bind(first, lambda value, first: value == first),
            f"the words are {plural(first)}|{with_article(first)} is named",
            f"the words are {plural(second)}|{with_article(second)} is named",
            (one, two),
            inputs=_same_kind((first, second)),
        )
    for group in _GROUPS:
        family.labelled(
            "which_" + "_".join(name.replace(" ", "_") for name in group),
            str,
            "say what kind of thing the words name|put the words into a category",
            "the kind of thing that is named|the category of the words",
            group,
            inputs=_same_kind(group),
        )
    return family


def is_category() -> Family:
    """Input: words of one kind. Answer: whether it is the kind in question."""
    family = Family("is_category")
    for category in TOPICS:
        others = tuple(name for name in TOPICS if name != category)
        family.asks(
            category.replace(" ", "_"),
            bind(category, lambda value, category: value == category),
            f"the input names {plural(category)}|what is named is {with_article(category)}",
            f"Does the input name {plural(category)}?|Is what is named {with_article(category)}?",
            inputs=_half(category, others),
        )
    return family


def _half(category: str, others: tuple[str, ...]) -> Inputs:
    """Words of the category in half of the inputs, words of another category in the others."""
    one, many = _same_kind((category,)), _same_kind(others)

    def draw(rng: random.Random, test: bool) -> tuple[str, str]:
        text, value = (one if rng.random() < 0.5 else many).draw(rng, test)
        return text, str(value)

    return Inputs(f"half/{category}", many.given, draw, keeps_words=True)


def count_category() -> Family:
    """Input: a mixed list. Answer: the number of its words of a kind."""
    family = Family("count_category")
    for category in TOPICS:
        many = plural(category)
        family.open(
            category.replace(" ", "_"),
            lambda words: sum(fits for _, fits in words),
            f"count the {many} in the list|say how many {many} the list names",
            f"the number of {many} in the list|how many of the words are {many}, in digits",
            inputs=_mixed(category),
        )
    return family


def pick_category() -> Family:
    """Input: a mixed list. Answer: its words of a kind, or the other words."""
    family = Family("pick_category")

    def add(name: str, category: str, rule: Callable[[Any], str | None], do: str, give: str) -> None:
        family.open(f"{name}_{category.replace(' ', '_')}", rule, do, give, inputs=_mixed(category))

    for category in TOPICS:
        many = plural(category)
        add(
            "only",
            category,
            lambda words: ", ".join(word for word, fits in words if fits) or None,
            f"list only the {many} from the input|filter the list and keep the {many}",
            f"the {many} in the list, separated by commas|those words of the list that are {many}",
        )
    for category in ("animal", "fruit", "tool", "vehicle", "job", "body part", "drink", "sport"):
        many = plural(category)
        add(
            "without",
            category,
            lambda words: ", ".join(word for word, fits in words if not fits) or None,
            f"remove all {many} from the list|drop the {many} and keep the rest of the list",
            f"the list without its {many}|the words of the list that are not {many}",
        )
        add(
            "first",
            category,
            lambda words: next((word for word, fits in words if fits), None),
            f"find the first of the {many} in the list|go through the list and stop at {with_article(category)}",
            f"the earliest word of the list that is {with_article(category)}",
        )
    return family


def odd_one() -> Family:
    """Input: words of one kind and an outsider. Answer: about the kind or about the outsider."""
    family = Family("odd_one", ODD)
    family.open(
        "word",
        lambda v: v["words"][v["place"]],
        "find the word that does not belong to the others|pick the odd one out",
        "the word that is of another kind than the rest|the outsider among the words",
    )
    family.open(
        "place",
        lambda v: v["place"] + 1,
        "say at which place the word stands that does not fit|give the position of the odd one out as a number",
        "the position of the outsider, counted from 1|the place number of the word that does not belong",
    )
    family.open(
        "removed",
        lambda v: ", ".join(w for i, w in enumerate(v["words"]) if i != v["place"]),
        "remove the word that does not belong to the others|drop the outsider from the list",
        "the list without the word that does not fit|only the words that are of one kind",
    )
    family.open(
        "common_kind",
        lambda v: v["most"],
        "name the category of all words but one|say what most of the words are, in the singular",
        "the kind of thing that most of the words name|the category that all but one belong to, as a singular",
    )
    family.open(
        "odd_kind",
        lambda v: v["odd"],
        "name the category of the word that does not fit|say what kind of thing the odd one out is",
        "the category of the outsider alone|the kind of thing that the word which does not belong names",
    )
    return family


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
    """Input: a phrase with an animal. Answer: the animal, or a fact about it."""
    family = Family("animals", ANIMAL)
    family.open("name", lambda v: v[0], "copy the name of the animal from the phrase", "the animal alone")
    family.open("shout", lambda v: v[0].upper(), "write the animal in capitals", "the animal in upper case")
    family.open(
        "letters",
        lambda v: len(v[0]),
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
        family.labelled(name, rule, do, give, labels)
    for name, holds, that, question in (
        ("flies", _flies, "the animal can fly", "Can the animal fly?"),
        ("backbone", lambda v: v[1] != "insect", "the animal has a backbone", "Does the animal have a backbone?"),
        ("feathers", lambda v: v[1] == "bird", "the animal has feathers", "Does the animal have feathers?"),
        ("milk", lambda v: v[1] == "mammal", "the animal gives its young milk", "Does the animal give its young milk?"),
        ("large", _is_large, "the animal, once grown, is larger than a dog", "Is the grown animal larger than a dog?"),
    ):
        family.asks(name, holds, that, question)
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
