"""ContextChoice: the text that stands in the context in addition to an adapter, and the adapter's scale there.

An adapter answers alone, with the task's description in the context, or with description and examples. Calibration
measures all three on tasks near to the training prompts and far from them, and ranks them by accuracy. `auto` takes the
first of the ranking that a request has the texts for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, Self, TypeVar, get_args

from llgbm.errors import CheckpointError, ConfigError

Context = Literal["none", "description", "examples"]
"""Only the conversation; the description above the user's turn; description and examples, these as earlier turns."""
ContextWanted = Literal[Context, "auto"]
"""A context, or `auto` for the best one by calibration."""
CONTEXTS: tuple[Context, ...] = get_args(Context)
_Example = TypeVar("_Example")


@dataclass(frozen=True)
class ContextSetting:
    """A context with the adapter's scale there.

    Attributes:
        context: the context.
        scale: factor on the adapter's product BA; 0 is the base without an adapter.
        accuracy: fraction of right answers in calibration, 0 to 1; None if it was not measured.

    Raises:
        CheckpointError: an unknown context, or a number that is not finite or out of range.
    """

    context: Context
    scale: float = 1.0
    accuracy: float | None = None

    def __post_init__(self) -> None:
        numbers = [self.scale, 0.0 if self.accuracy is None else self.accuracy]
        valid = self.context in CONTEXTS and all(isinstance(x, int | float) and math.isfinite(x) for x in numbers)
        if not valid or not 0 <= numbers[1] <= 1:
            raise CheckpointError(
                f"a choice of context is one of {', '.join(CONTEXTS)} with a finite scale and an accuracy from 0 to 1, "
                f"not {self}; calibrate again"
            )


@dataclass(frozen=True)
class ContextBin:
    """The ranking for requests at about one distance from the training prompts.

    Attributes:
        similarity: the lowest cosine with the nearest training prompt; the first bin also takes lower ones.
        settings: one for each context, best first.
    """

    similarity: float
    settings: tuple[ContextSetting, ...]


@dataclass(frozen=True)
class ContextChoice:
    """The rankings of a calibration, by rising similarity.

    Attributes:
        without_examples: for adapters made from a description; contexts `none` and `description`.
        with_examples: for adapters made from examples, and mostly a description; all contexts.

    Raises:
        CheckpointError: a table is empty or not in order, or a bin lacks a context.
    """

    without_examples: tuple[ContextBin, ...]
    with_examples: tuple[ContextBin, ...]

    def __post_init__(self) -> None:
        for table, contexts in ((self.without_examples, CONTEXTS[:2]), (self.with_examples, CONTEXTS)):
            rising = all(a.similarity < b.similarity for a, b in pairwise(table))
            complete = all(sorted(s.context for s in one.settings) == sorted(contexts) for one in table)
            if not table or not rising or not complete:
                raise CheckpointError(
                    f"a choice of context needs bins of rising similarity, each with {', '.join(contexts)} once; "
                    "calibrate again"
                )

    def ranking(self, similarity: float, *, with_examples: bool) -> tuple[ContextSetting, ...]:
        """All settings for a request with this cosine, best first."""
        return ranking_in(self.with_examples if with_examples else self.without_examples, similarity)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The choice that `dataclasses.asdict` wrote. Raises TypeError, KeyError, ValueError or CheckpointError."""
        return cls(**{name: tuple(map(_bin, table)) for name, table in data.items()})

    @classmethod
    def of_scales(cls, similarity: float, far: float, near: float) -> Self:
        """The choice of an earlier manifest, which has two scales for the context `description` and no ranking."""

        def bins(best: Sequence[ContextSetting]) -> tuple[ContextBin, ...]:
            last = ContextSetting("none")
            places = ((similarity - 1, far), (similarity, near))
            return tuple(ContextBin(at, (*best, ContextSetting("description", scale), last)) for at, scale in places)

        return cls(bins(()), bins((ContextSetting("examples"),)))


def ranking_in(table: Sequence[ContextBin], similarity: float) -> tuple[ContextSetting, ...]:
    """The settings of the bin for this cosine, best first."""
    return next((one for one in reversed(table) if similarity >= one.similarity), table[0]).settings


UNCALIBRATED = (ContextSetting("examples"), ContextSetting("description"), ContextSetting("none"))
"""The ranking without a calibration: all texts that there are, since new tasks need them (see docs/METHOD.md)."""


def pick(
    ranking: Sequence[ContextSetting], wanted: ContextWanted, *, description: bool, examples: bool
) -> ContextSetting:
    """The setting for a wanted context.

    Args:
        ranking: best first.
        wanted: `auto` for the first possible one.
        description, examples: whether the request has them.

    Raises:
        ConfigError: the request lacks the text for the wanted context.
    """
    there = {"none": True, "description": description, "examples": examples}
    if wanted != "auto" and not there[wanted]:
        raise ConfigError(
            f"context {wanted!r} needs {'a description' if wanted == 'description' else 'examples'}, and the request "
            "has none; give it, or choose context auto"
        )
    return next(one for one in ranking if there[one.context] and wanted in ("auto", one.context))


def texts_in(
    context: Context, description: str | None, examples: tuple[_Example, ...]
) -> tuple[str | None, tuple[_Example, ...]]:
    """The texts of a task that stand in this context: the description, or None, and the examples."""
    return None if context == "none" else description, examples if context == "examples" else ()


def _bin(data: Mapping[str, Any]) -> ContextBin:
    return ContextBin(float(data["similarity"]), tuple(ContextSetting(**setting) for setting in data["settings"]))
