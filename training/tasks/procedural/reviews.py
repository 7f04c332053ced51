"""Families `reviews` and `orders`: short messages from customers."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from training.tasks.procedural.recipes import Family, Inputs, bind
from training.tasks.procedural.words import FIRST_NAMES

Parts = Mapping[str, Any]

_SUBJECTS = {
    "food": ("soup", "pizza", "salad", "steak", "dessert", "bread", "fish", "breakfast"),
    "staff": ("waiter", "cook", "manager", "cashier", "bartender", "owner"),
    "place": ("garden", "terrace", "dining room", "bathroom", "music", "view", "parking lot"),
    "price": ("bill", "price", "discount", "tip", "lunch deal"),
}
_GOOD = {
    "food": ("delicious", "tasty", "fresh", "perfect"),
    "staff": ("friendly", "polite", "helpful", "charming"),
    "place": ("lovely", "clean", "beautiful", "cosy"),
    "price": ("fair", "reasonable", "generous", "great"),
}
_BAD = {
    "food": ("awful", "stale", "tasteless", "disgusting"),
    "staff": ("rude", "careless", "unfriendly", "arrogant"),
    "place": ("dirty", "ugly", "horrible", "gloomy"),
    "price": ("outrageous", "unfair", "ridiculous", "shocking"),
}
_FORMS = (
    "The {what} was {how}.",
    "The {what} was really {how}.",
    "I found the {what} {how}.",
    "We all thought the {what} was {how}.",
    "Again the {what} was {how}!",
    "Honestly, the {what} seemed {how}.",
)
_ITEMS = ("coffee", "tea", "bagel", "muffin", "juice", "sandwich", "cookie", "soda", "lemonade", "pretzel")
_SIZES = ("small", "medium", "large")


def _draw_review(rng: random.Random, test: bool) -> tuple[str, Parts]:
    about = rng.choice(sorted(_SUBJECTS))
    good = rng.random() < 0.5
    parts = {
        "about": about,
        "good": good,
        "what": rng.choice(_SUBJECTS[about]),
        "how": rng.choice((_GOOD if good else _BAD)[about]),
        "form": rng.choice(_FORMS),
    }
    return parts["form"].format(**parts), parts  # type: ignore[attr-defined]


def _draw_order(rng: random.Random, test: bool) -> tuple[str, Parts]:
    item = rng.choice(_ITEMS)
    count = rng.randint(2, 9)
    items = item + ("es" if item.endswith("ch") else "s")
    parts = {
        "count": count,
        "size": rng.choice(_SIZES),
        "item": item,
        "items": items,
        "who": rng.choice(FIRST_NAMES),
        "when": rng.choice(("now", "later", "at noon")),
    }
    return "{count} {size} {items} for {who}, {when}".format(**parts), parts


REVIEW = Inputs("review", "a guest's remark on a restaurant|a short review|one sentence from a review", _draw_review)
ORDER = Inputs("order", "an order at a snack bar|a customer's order|one line with an order", _draw_order)


def reviews() -> Family:
    """Input: a remark on a restaurant. Answer: its opinion or its subject."""
    family = Family("reviews", REVIEW)
    for name, good, bad in (
        ("word", "positive", "negative"), ("plain", "good", "bad"), ("sign", "+", "-"), ("face", ":)", ":("),
        ("stars", "5", "1"), ("mood", "happy", "unhappy"), ("thumb", "thumbs up", "thumbs down"), ("bit", "0", "1"),
        ("verb", "keep", "fix"), ("like", "like", "dislike"),
    ):  # fmt: skip
        family.either(
            f"opinion_as_{name}",
            lambda p: bool(p["good"]),
            "the guest is pleased|the remark is praise",
            "the guest complains|the remark is a complaint",
            (good, bad),
        )
    family.labelled(
        "about",
        lambda p: p["about"],
        "say what the remark is about|sort the remark by its topic",
        "the topic of the remark",
        ("food", "staff", "place", "price"),
    )
    departments = {"food": "kitchen", "staff": "personnel", "place": "building", "price": "accounts"}
    family.labelled(
        "department",
        lambda p: departments[p["about"]],
        "forward the remark: food goes to kitchen, staff to personnel, rooms to building, money to accounts"
        "|name the department: kitchen for food, personnel for staff, building for the place, accounts for prices",
        "the department that the remark belongs to (kitchen: food; personnel: staff; building: place; accounts: money)",
        tuple(departments.values()),
    )
    for topic, asked in (
        ("food", "something to eat"),
        ("staff", "a person who works there"),
        ("place", "the rooms or surroundings"),
        ("price", "money"),
    ):
        family.asks(
            f"is_about_{topic}",
            bind(topic, lambda p, topic: p["about"] == topic),
            f"the remark is about {asked}",
            f"Is the remark about {asked}?",
        )
    family.asks(
        "bad_food",
        lambda p: p["about"] == "food" and not p["good"],
        "the guest complains about the food",
        "Does the guest complain about the food?",
        ("alert", "fine"),
    )
    family.labelled(
        "both",
        lambda p: ("good " if p["good"] else "bad ") + ("food" if p["about"] == "food" else "other"),
        "say good or bad, then food or other, for what the guest thinks of what",
        "the opinion (good or bad) and then the topic (food or other)",
        ("good food", "bad food", "good other", "bad other"),
    )
    for name, form, do, give in (
        ("subject", "{what}", "name what the guest judges", "the thing or person that the remark judges"),
        ("opinion_word", "{how}", "copy the word that carries the opinion", "the adjective of the remark that judges"),
        (
            "short",
            "{what}: {how}",
            "shorten the remark to the subject, a colon and the opinion word",
            "what is judged and the opinion word, with a colon",
        ),
        ("noun_phrase", "{how} {what}", "put the opinion word before the subject", "adjective and noun of the remark"),
        (
            "not",
            "The {what} was not {how}.",
            "deny the remark, with The in front and was not",
            "the remark with was not",
        ),
        (
            "plain",
            "The {what} was {how}.",
            "reduce the remark to a plain statement with was",
            "what is judged, was and the opinion word",
        ),
        (
            "question",
            "Was the {what} {how}?",
            "ask whether the remark is true, starting with Was",
            "a question that starts with Was",
        ),
    ):
        family.open(name, bind(form, lambda p, form: form.format(**p)), do, give)
    return family


def orders() -> Family:
    """Input: an order. Answer: one of its parts, or another form of it."""
    family = Family("orders", ORDER)
    for name, form, do, give in (
        ("count", "{count}", "say how many pieces are ordered", "the number of pieces in the order"),
        ("item", "{item}", "name the ordered item in the singular", "what is ordered, as a singular noun"),
        ("size", "{size}", "give the size that is ordered", "the size in the order"),
        ("who", "{who}", "say for whom the order is", "the customer's name"),
        ("when", "{when}", "say when the order is wanted", "the time in the order, as written"),
        (
            "kitchen",
            "{count}x {item}",
            "write the order for the kitchen, such as 2x tea",
            "a kitchen note such as 2x tea",
        ),
        ("with_size", "{size} {item}", "name one ordered piece with its size", "size and item, in the singular"),
        ("cup", "{who}: {size}", "write what goes on the cup: name, colon, size", "a cup label such as Ann: large"),
        (
            "ready",
            "{who}, your {items} are ready!",
            "call the customer and say that the items are ready",
            "a call such as Ann, your teas are ready!",
        ),
        (
            "code",
            "{S}{count}",
            "code the order: capital first letter of the size, then the number",
            "a code such as L2",
        ),
        ("fields", "{item},{size},{count}", "write item, size and number with bare commas", "the order as a CSV row"),
        (
            "question",
            "{count} {items}?",
            "ask back number and items, with a question mark",
            "number and items as a question",
        ),
        (
            "no_size",
            "{count} {items} for {who}",
            "shorten the order: leave out size and time",
            "the order without size and time",
        ),
    ):
        family.open(name, bind(form, lambda p, form: form.format(**p, S=p["size"][0].upper())), do, give)
    for k in (1, 2):
        family.open(
            f"plus_{k}",
            bind(k, lambda p, k: p["count"] + k),
            f"say how many pieces it is if {'one is' if k == 1 else 'two are'} added to the order",
            f"the number in the order plus {k}",
        )
    prices = {"small": 1, "medium": 2, "large": 3}
    family.open(
        "total",
        lambda p: p["count"] * prices[p["size"]],
        "compute what the order costs: a small piece is 1, a medium one 2, a large one 3",
        "the price of the order when small, medium and large cost 1, 2 and 3 each",
    )
    family.asks("is_large", lambda p: p["size"] == "large", "the order is for the large size",
                "Is the order for the large size?")  # fmt: skip
    family.asks("is_drink", lambda p: p["item"] in ("coffee", "tea", "juice", "soda", "lemonade"),
                "a drink is ordered", "Is a drink ordered?")  # fmt: skip
    family.asks("many", lambda p: p["count"] > 5, "more than five pieces are ordered",
                "Are more than five pieces ordered?", ("big", "normal"))  # fmt: skip
    family.asks("urgent", lambda p: p["when"] == "now", "the order is wanted now", "Is the order wanted now?",
                ("rush", "wait"))  # fmt: skip
    return family
