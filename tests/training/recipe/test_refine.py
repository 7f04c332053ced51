from pathlib import Path

import pytest

from llgbm.adapters.peft_io import load_peft, save_peft
from llgbm.base import load_base
from llgbm.refining.refine import refine
from llgbm.refining.settings import RefineConfig, RefineRow
from tests.fixtures import random_lora, same_weights
from tests.small_generator import SPEC
from training.cli.command_line import main
from training.cli.commands import COMMANDS

WORDS = ("cat", "dog", "sun", "sea", "tree", "bird", "rain", "hill", "road", "lamp", "door", "fish")
TRAINING = ("settings.max_steps=8", "settings.check_every=8", "settings.hold_out=true", "base_storage=float32")


@pytest.fixture
def examples(tmp_path: Path) -> Path:
    (tmp_path / "examples.csv").write_text("".join(f"{word},yes\n" for word in WORDS))
    return tmp_path / "examples.csv"


def command(folder: Path, base: Path, *words: str) -> int:
    places = (f"out={folder / 'out'}", f"workdir={folder / 'run'}", f"base={base}", *TRAINING)
    return main(COMMANDS, ["refine", f"examples={folder / 'examples.csv'}", *places, *words], program="training")


def test_it_writes_the_adapter_that_the_library_makes_and_prints_the_scores(
    tmp_path: Path, examples: Path, tiny_base_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, start = load_base(tiny_base_path), random_lora(SPEC, 0)
    save_peft(start, tmp_path / "start", base_id=base.spec.base_id)
    words = ("settings.learning_rate=2e-2", "settings.description=Say yes.", f"start={tmp_path / 'start'}")
    assert command(tmp_path, tiny_base_path, *words) == 0

    config = RefineConfig(description="Say yes.", max_steps=8, check_every=8, learning_rate=2e-2)
    expected = refine(base, start, [RefineRow.of(word, "yes") for word in WORDS], config)
    assert expected.helped
    weights, base_id = load_peft(tmp_path / "out")
    assert base_id == base.spec.base_id
    assert same_weights(weights, expected.weights)
    assert "10 steps" in (printed := capsys.readouterr().out)
    assert "refined 100% right" in printed
    assert (tmp_path / "run" / "metrics" / "refine.jsonl").read_text().count("loss") == 10


def test_a_result_that_does_not_help_is_not_written_over_a_better_start(
    tmp_path: Path, examples: Path, tiny_base_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, rows = load_base(tiny_base_path), [RefineRow.of(word, "yes") for word in WORDS]
    taught = refine(base, None, rows, RefineConfig(steps=16, hold_out=False, learning_rate=2e-2)).weights
    save_peft(taught, tmp_path / "start", base_id=base.spec.base_id)
    examples.write_text("".join(f"{word},no {word}\n" for word in WORDS[:4]))
    (tmp_path / "check.csv").write_text("fish,yes\n")
    words = (f"start={tmp_path / 'start'}", f"validation={tmp_path / 'check.csv'}", "settings.learning_rate=1e-2")
    assert command(tmp_path, tiny_base_path, *words) == 0
    assert "refining did not help" in capsys.readouterr().out
    weights, _ = load_peft(tmp_path / "out")
    assert same_weights(weights, taught)


def test_bad_input_is_refused_in_one_line_and_writes_nothing(
    tmp_path: Path, examples: Path, tiny_base_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    examples.write_text("cat,yes\ndog\n")
    assert command(tmp_path, tiny_base_path) == 2
    assert "examples.csv: line 2: it has 1 instead of 2 columns" in capsys.readouterr().err
    examples.write_text("cat,yes\n")
    save_peft(random_lora(SPEC, 0), tmp_path / "start", base_id="another/base")
    assert command(tmp_path, tiny_base_path, f"start={tmp_path / 'start'}") == 2
    assert "was made for another/base" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_with_other_files_is_never_replaced(
    tmp_path: Path, examples: Path, tiny_base_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    notes = tmp_path / "out" / "notes.txt"
    notes.parent.mkdir()
    notes.write_text("mine")
    assert command(tmp_path, tiny_base_path) == 2
    assert "holds other files (notes.txt), which would be lost" in capsys.readouterr().err
    assert notes.read_text() == "mine"
    assert not (tmp_path / "run").exists()  # before any training
