import json
from pathlib import Path

import pytest

from llgbm.prompting import AdapterMaker
from training.cli.command_line import main
from training.cli.commands import COMMANDS
from training.tasks.format import Example, Task, save_task

FAMILY = """family: echo
category: copying
task: same
d: Write yes.
d: Answer yes.
d: Reply with yes.
d: Say yes to it.
---
"""


@pytest.fixture
def families(tmp_path: Path) -> Path:
    folder = tmp_path / "families"
    folder.mkdir()
    rows = "".join(f"word{letter} || yes\n" for letter in "abcdefghijklmnopqrstuvw")
    (folder / "echo.txt").write_text(FAMILY + rows)
    return folder


@pytest.fixture
def kinds(tmp_path: Path) -> Path:
    """Folder with a task of more test rows than a family has, of which only the later ones are answered by no."""
    rows = [Example(f"word{i}", "yes" if i < 20 else "no") for i in range(24)]
    task = Task(
        "always", "copying", "made for tests", "CC0-1.0", ("Answer with yes.", "Say yes."), "exact_match", None,
        tuple(rows[:12]), tuple(rows[12:]),
    )  # fmt: skip
    save_task(tmp_path / "kinds", task)
    return tmp_path / "kinds"


def test_every_start_is_measured_once_and_the_result_has_the_rows(
    tmp_path: Path,
    families: Path,
    kinds: Path,
    generator_folder: Path,
    tiny_base_path: Path,
    tiny_encoder_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = [
        "refined", f"workdir={tmp_path / 'run'}", f"families={families}", f"heldout={kinds}",
        "counts=4,12,99", "base_storage=float32",
        "settings.steps=16", "settings.hold_out=false", "settings.learning_rate=2e-2", f"checkpoint={generator_folder}",
        f"base={tiny_base_path}", f"text_encoder={tiny_encoder_path}",
    ]  # fmt: skip
    assert main(COMMANDS, words, program="training") == 0
    assert "generated, refined on 12 examples + description: 100.0%" in capsys.readouterr().out
    columns = json.loads((tmp_path / "run" / "results" / "refined.json").read_text())["columns"]
    assert list(columns) == ["heldout_families", "heldout_kinds"]
    column = columns["heldout_families"]
    starts = ("PEFT's initialisation", "shared adapter", "generated")
    refined = [f"{start}, refined on {n} examples" for start in starts for n in (4, 12)]
    assert set(column["methods"]) == {
        *(name + added for name in ("base", *starts[1:], *refined) for added in ("", " + description")),
        *(f"base + description + {n} examples" for n in (3, 4, 12)),
    }
    assert column["methods"]["base"]["accuracy"] == 0
    assert column["methods"][refined[-1]] | {"refine_seconds": 0} == {
        "num_tasks": 1, "accuracy": 1, "interval": [1, 1], "refine_seconds": 0
    }  # fmt: skip
    gained = {(d["of"], d["minus"]): d["mean"] for d in column["differences"]}
    assert gained[refined[-1], "generated"] == 1
    assert gained[refined[-1], "base + description + 3 examples"] == 1

    assert columns["heldout_kinds"]["methods"].keys() == column["methods"].keys()
    # only of the rows that are answered by yes
    assert columns["heldout_kinds"]["methods"][refined[-1]]["accuracy"] == 1

    def fails(*_: object) -> None:
        raise RuntimeError("a finished cell needs no adapter")

    # the bits of an adapter differ with the threads, so no key has them
    monkeypatch.setattr(AdapterMaker, "make", fails)
    cells = (tmp_path / "run" / "cells.jsonl").read_text()
    assert main(COMMANDS, words, program="training") == 0
    assert (tmp_path / "run" / "cells.jsonl").read_text() == cells
