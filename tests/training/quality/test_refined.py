import json
from pathlib import Path

import pytest

from training.cli.command_line import main
from training.cli.commands import COMMANDS

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


def test_every_start_is_measured_once_and_the_result_has_the_rows(
    tmp_path: Path,
    families: Path,
    generator_folder: Path,
    tiny_base_path: Path,
    tiny_encoder_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [
        "refined", f"workdir={tmp_path / 'run'}", f"families={families}", "counts=4,12,99", "base_storage=float32",
        "settings.steps=16", "settings.hold_out=false", "settings.learning_rate=2e-2", f"checkpoint={generator_folder}",
        f"base={tiny_base_path}", f"text_encoder={tiny_encoder_path}",
    ]  # fmt: skip
    assert main(COMMANDS, words, program="training") == 0
    assert "refined from generated, 12 examples: bare 100.0%, described 100.0%" in capsys.readouterr().out
    rows = json.loads((tmp_path / "run" / "results" / "refined.json").read_text())["rows"]
    assert set(rows) == {
        "base", "shared, not refined", "generated, not refined",
        *(f"base, {n} examples in the context" for n in (3, 4, 12)),
        *(f"refined from {start}, {n} examples" for start in ("nothing", "shared", "generated") for n in (4, 12)),
    }  # fmt: skip
    assert rows["base"]["bare"]["accuracy"] == 0
    assert "bare" not in rows["base, 4 examples in the context"]

    cells = (tmp_path / "run" / "cells.jsonl").read_text()
    assert main(COMMANDS, words, program="training") == 0
    assert (tmp_path / "run" / "cells.jsonl").read_text() == cells
