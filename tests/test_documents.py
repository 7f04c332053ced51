"""Files that the documents name exist, and commands have the values that the documents set."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from training.cli.command_line import main
from training.cli.commands import COMMANDS

ROOT = Path(__file__).resolve().parent.parent
CURRENT = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "checkpoints/MODEL_CARD.md", "docs/METHOD.md")
"""Documents of the current state: all result files that they name are in the repository."""
PAST = ("docs/EXPERIMENTS.md",)
"""Documents with results and commands of the tag `experiments`; only their links must lead to files here."""

_PROGRAM = "python -m training"
_COMMAND = re.compile(
    r"`(python\s+-m\s+training\s[^`]+)`|^ {4,}(python -m training (?:[^\n]*\\\n)*[^\n]*)", re.MULTILINE
)
_RESULT = re.compile(r"results/[\w./-]+\.json")
_LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")


def commands(text: str) -> list[str]:
    """The training commands of a document, in code spans and in indented blocks, each on one line."""
    found = (span or block for span, block in _COMMAND.findall(text))
    return list(dict.fromkeys(" ".join(command.replace("\\\n", " ").split()) for command in found))


CURRENT_COMMANDS = [
    command for name in ("README.md", "docs/METHOD.md") for command in commands((ROOT / name).read_text("utf-8"))
]


def test_commands_are_found_in_spans_and_in_blocks_of_several_lines() -> None:
    text = "Run `python -m training\ntables`.\n\n    python -m training fit a=1 \\\n        b=2\n    python -m other\n"
    in_a_list = "1. First:\n\n       python -m training deltas\n"
    assert commands(text + in_a_list) == [f"{_PROGRAM} tables", f"{_PROGRAM} fit a=1 b=2", f"{_PROGRAM} deltas"]


@pytest.mark.parametrize("document", CURRENT)
def test_a_document_names_results_that_exist(document: str) -> None:
    named = set(_RESULT.findall((ROOT / document).read_text("utf-8")))
    assert {path for path in named if not (ROOT / path).is_file()} == set()


def test_every_result_is_named_by_a_document() -> None:
    documents = [ROOT / name for name in CURRENT] + list((ROOT / "docs").glob("*.md"))
    text = "\n".join(path.read_text("utf-8") for path in documents)
    kept = {path.relative_to(ROOT).as_posix() for path in (ROOT / "results").rglob("*.json")}
    assert kept
    assert {path for path in kept if path not in text} == set()


@pytest.mark.parametrize("path", sorted((ROOT / "results").rglob("*.json")), ids=lambda path: path.name)
def test_a_result_names_no_folder_of_the_machine_that_made_it(path: Path) -> None:
    assert "=/" not in path.read_text("utf-8")


@pytest.mark.parametrize("document", CURRENT + PAST)
def test_links_of_a_document_lead_to_files(document: str) -> None:
    path = ROOT / document
    named = set(_LINK.findall(path.read_text("utf-8")))
    assert {link for link in named if not (path.parent / link).exists()} == set()


def test_the_readme_has_the_commands_that_train_a_generator() -> None:
    found = [command.split()[3] for command in CURRENT_COMMANDS]
    assert found[:6] == ["tasks", "encoder", "words", "fit", "calibrate", "evaluate"]


@pytest.mark.parametrize("command", CURRENT_COMMANDS)
def test_a_command_of_readme_and_method_is_accepted(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    words = shlex.split(command.removeprefix(_PROGRAM), comments=True)
    status = main(COMMANDS, [*words, "--show-config"], program=_PROGRAM)
    assert status == 0, capsys.readouterr().err
