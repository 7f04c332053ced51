"""Recipes of procedural tasks: a kind of input, a rule that computes the answer, and phrases that describe the rule.

A recipe's rule gets the value behind an input (a list of numbers, the parts of a sentence), not its text. It returns
None for an input that does not suit the task. Recipes with the same `Inputs` have the same inputs in the same split,
so that only the description determines the answer.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from training.tasks.procedural.wordings import either_wordings, label_wordings, open_wordings, yes_no_wordings

Rule = Callable[[Any], str | None]
P = TypeVar("P")
R = TypeVar("R")


def bind(parameter: P, rule: Callable[[Any, P], R]) -> Callable[[Any], R]:
    """The rule with its second argument bound now; a closure in a loop would use the loop's last value."""
    return lambda value: rule(value, parameter)


@dataclass(frozen=True)
class Inputs:
    """A kind of input.

    Attributes:
        name: unique; seeds the inputs.
        given: phrases that describe an input, separated by `|`.
        draw: makes the text of an input and the value behind it; the second argument is True for test rows.
        keeps_words: `draw` reserves some words for test rows. Otherwise inputs are split at random.
    """

    name: str
    given: str
    draw: Callable[[random.Random, bool], tuple[str, Any]]
    keeps_words: bool = False


@dataclass(frozen=True)
class Recipe:
    """One task. `name` is unique within `family`; `labels` are all possible answers, or None for free answers."""

    family: str
    name: str
    inputs: Inputs
    rule: Rule
    descriptions: tuple[str, ...]
    labels: tuple[str, ...] | None = None

    @property
    def task_id(self) -> str:
        """The id of the task, also the name of its file."""
        return f"synth_{self.family}_{self.name}"


class Family:
    """Collects the recipes of one family."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.recipes: list[Recipe] = []

    def open(self, name: str, inputs: Inputs, rule: Rule, do: str, give: str) -> None:
        """Add a task with free answers; see `open_wordings` for the phrases."""
        texts = open_wordings(f"{self.name}/{name}", inputs.given, do, give)
        self.recipes.append(Recipe(self.name, name, inputs, rule, texts))

    def labelled(self, name: str, inputs: Inputs, rule: Rule, do: str, give: str, labels: tuple[str, ...]) -> None:
        """Add a task with self-explanatory labels."""
        texts = label_wordings(f"{self.name}/{name}", inputs.given, do, give, labels)
        self.recipes.append(Recipe(self.name, name, inputs, rule, texts, labels))

    def asks(
        self,
        name: str,
        inputs: Inputs,
        holds: Callable[[Any], bool | None],
        that: str,
        question: str,
        labels: tuple[str, str] = ("yes", "no"),
    ) -> None:
        """Add a yes-no task: the answer is the first label if `holds`, else the second."""
        texts = yes_no_wordings(f"{self.name}/{name}", inputs.given, that, question, *labels)
        self.recipes.append(Recipe(self.name, name, inputs, _labelled(holds, labels), texts, labels))

    def either(
        self,
        name: str,
        inputs: Inputs,
        holds: Callable[[Any], bool | None],
        that: str,
        other: str,
        labels: tuple[str, str],
    ) -> None:
        """Add a task with two arbitrary labels: the answer is the first if `holds`, else the second."""
        texts = either_wordings(f"{self.name}/{name}", inputs.given, that, other, *labels)
        self.recipes.append(Recipe(self.name, name, inputs, _labelled(holds, labels), texts, labels))


def _labelled(holds: Callable[[Any], bool | None], labels: tuple[str, str]) -> Rule:
    def rule(value: Any) -> str | None:
        held = holds(value)
        return None if held is None else labels[0] if held else labels[1]

    return rule
