from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from training.cli.config_help import config_help, field_docs


@dataclass(frozen=True)
class Optimiser:
    """How to step.

    Attributes:
        lr: the learning rate,
            at its peak.
        kind: which rule.

    Notes:
        nothing: here.
    """

    lr: float = 1e-3
    kind: Literal["adamw", "sgd"] = "adamw"


@dataclass(frozen=True)
class Base:
    workdir: Path
    """Folder that holds
    everything."""


@dataclass(frozen=True)
class Fit(Base):
    tasks: tuple[str, ...] = ("a", "b")
    """Tasks to train on."""
    plain: int | None = None
    optimiser: Optimiser = field(default_factory=lambda: Optimiser(lr=0.5))
    """The optimiser."""


def test_the_text_under_a_field_is_its_description() -> None:
    assert field_docs(Fit) == {
        "workdir": "Folder that holds everything.",
        "tasks": "Tasks to train on.",
        "optimiser": "The optimiser.",
    }


def test_the_attributes_section_describes_fields_too() -> None:
    assert field_docs(Optimiser) == {"lr": "the learning rate, at its peak.", "kind": "which rule."}


def test_help_lists_every_value_with_type_default_and_text() -> None:
    assert config_help(Fit) == (
        "  workdir  (path; must be given)\n"
        "      Folder that holds everything.\n"
        "  tasks  (list of str; default [a, b])\n"
        "      Tasks to train on.\n"
        "  plain  (int or none; default none)\n"
        "      The optimiser.\n"
        "  optimiser.lr  (float; default 0.5)\n"
        "      the learning rate, at its peak.\n"
        "  optimiser.kind  (one of adamw, sgd; default adamw)\n"
        "      which rule."
    )
