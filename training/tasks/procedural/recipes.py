"""Recipes of procedural tasks: a kind of input, a rule that computes the answer, and phrases that describe the rule.

A recipe's rule gets the value behind an input (a list of numbers, the parts of a sentence), not its text. Its result is
written with `str`; None means that an input does not suit the task. Recipes with the same `Inputs` have the same inputs
in the same split, so that only the description determines the answer.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from training.tasks.procedural.wordings import either_wordings, label_wordings, open_wordings, yes_no_wordings

Rule = Callable[[Any], object]
Holds = Callable[[Any], bool | None]
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
    """Collects the recipes of one family. Its `inputs` are those of every recipe that names no others."""

    def __init__(self, name: str, inputs: Inputs | None = None) -> None:
        self.name, self.inputs = name, inputs
        self.recipes: list[Recipe] = []

    def open(self, name: str, rule: Rule, do: str, give: str, *, inputs: Inputs | None = None) -> None:
        """Add a task with free answers; see `open_wordings` for the phrases."""
        self._add(name, inputs, rule, lambda seed, given: open_wordings(seed, given, do, give))

    def labelled(
        self, name: str, rule: Rule, do: str, give: str, labels: tuple[str, ...], *, inputs: Inputs | None = None
    ) -> None:
        """Add a task with self-explanatory labels."""
        self._add(name, inputs, rule, lambda seed, given: label_wordings(seed, given, do, give, labels), labels)

    def asks(
        self,
        name: str,
        holds: Holds,
        that: str,
        question: str,
        labels: tuple[str, str] = ("yes", "no"),
        *,
        inputs: Inputs | None = None,
    ) -> None:
        """Add a yes-no task: the answer is the first label if `holds`, else the second."""
        rule = _labelled(holds, labels)
        self._add(name, inputs, rule, lambda seed, given: yes_no_wordings(seed, given, that, question, *labels), labels)

    def either(
        self, name: str, holds: Holds, that: str, other: str, labels: tuple[str, str], *, inputs: Inputs | None = None
    ) -> None:
        """Add a task with two arbitrary labels: the answer is the first if `holds`, else the second."""
        rule = _labelled(holds, labels)
        self._add(name, inputs, rule, lambda seed, given: either_wordings(seed, given, that, other, *labels), labels)

    def _add(
        self,
        name: str,
        inputs: Inputs | None,
        rule: Rule,
        wordings: Callable[[str, str], tuple[str, ...]],
        labels: tuple[str, ...] | None = None,
    ) -> None:
        chosen = inputs or self.inputs
        if chosen is None:
            raise TypeError(f"{self.name}/{name} has no inputs: give them to it or to its family")
        texts = wordings(f"{self.name}/{name}", chosen.given)
        self.recipes.append(Recipe(self.name, name, chosen, rule, texts, labels))


def _labelled(holds: Holds, labels: tuple[str, str]) -> Rule:
    def rule(value: Any) -> str | None:
        held = holds(value)
        return None if held is None else labels[0] if held else labels[1]

    return rule
