import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from llgbm.errors import TaskFormatError
from training.cli.command_line import Command, main
from training.cli.config import load_config


@dataclass(frozen=True)
class LoRA:
    rank: int = 8
    alpha: float = 16.0


@dataclass(frozen=True)
class Config:
    tasks: tuple[str, ...] = ()
    """Tasks to train on."""
    steps: int = 1
    resume: bool = False
    fail: str = ""
    lora: LoRA = field(default_factory=LoRA)


def run(config: Config) -> None:
    if config.fail == "refuse":
        raise TaskFormatError("x.json: test: has\n  a fault")
    if config.fail == "interrupt":
        raise KeyboardInterrupt
    if config.fail == "crash":
        raise RuntimeError("a bug")
    sys.stdout.write(f"{config}\n")


HERE = __name__
TABLE = (
    Command("teachers", "train teachers", f"{HERE}:Config", f"{HERE}:run"),
    Command("fit", "train the generator", f"{HERE}:LoRA", f"{HERE}:run"),
    Command("later", "needs what is not here", "training.not_there:Config", "training.not_there:run"),
)


def call(*words: str) -> int:
    return main(TABLE, words, program="prog")


def test_a_command_gets_its_configuration(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("teachers: {steps: 7}\nfit: {rank: 2}\n")
    words = (
        "--config",
        str(file),
        "tasks=[arc_e, boolq]",
        "lora.rank=4",
        "lora.alpha=2",
        "resume=true",
    )
    assert call("teachers", *words) == 0
    expected = Config(("arc_e", "boolq"), 7, True, lora=LoRA(4, 2.0))
    assert capsys.readouterr().out == f"{expected}\n"


def test_help_needs_no_module_of_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert call() == call("--help") == 0
    assert "later     needs what is not here" in capsys.readouterr().out


def test_help_of_a_command_lists_its_values(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("teachers", "--help") == 0
    out = capsys.readouterr().out
    assert "tasks  (list of str; default [])\n      Tasks to train on." in out
    assert "lora.rank  (int; default 8)" in out


def test_show_config_prints_what_reads_back_and_runs_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert call("teachers", "fail=crash", "lora.rank=3", "--show-config") == 0
    file = tmp_path / "c.yaml"
    file.write_text(capsys.readouterr().out)
    assert load_config(Config, [file]) == Config(fail="crash", lora=LoRA(rank=3))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["teacher"], "no command 'teacher'; did you mean teachers?"),
        (["xyz"], "no command 'xyz'; there are teachers, fit, later"),
        (["teachers", "fail=refuse"], "x.json: test: has a fault"),
        (["teachers", "stepz=1"], "stepz: unknown key; did you mean steps?"),
        (
            ["teachers", "--lora-rank", "1"],
            "--lora-rank: unknown option; a value is written lora_rank=VALUE, see --help",
        ),
        (["teachers", "--steps=1"], "--steps=1: unknown option; a value is written steps=1, see --help"),
        (["teachers", "loose"], "'loose': expected NAME=VALUE or --config FILE, see --help"),
        (["teachers", "--config"], "--config needs a file after it"),
    ],
)
def test_an_error_of_the_user_is_one_line_and_code_2(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*words) == 2
    assert capsys.readouterr().err == f"prog: {message}\n"


def test_debug_shows_where_an_error_came_from(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("teachers", "fail=refuse", "--debug") == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_bug_shows_its_traceback_and_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("teachers", "fail=crash") == 1
    assert "RuntimeError: a bug" in capsys.readouterr().err


def test_an_interrupt_has_its_own_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("teachers", "fail=interrupt") == 130
    assert capsys.readouterr().err == "prog: interrupted\n"


def test_only_the_command_in_use_is_imported() -> None:
    call("teachers", "steps=2")
    assert "training.not_there" not in sys.modules
