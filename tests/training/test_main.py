import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

from training.cli.command_line import Command, find
from training.cli.commands import COMMANDS
from training.cli.config import config_paths, to_dict
from training.cli.config_help import config_help
from training.runs.fingerprint import flat

ROOT = Path(__file__).resolve().parents[2]


def names(command: Command) -> str:
    return command.name


@pytest.mark.parametrize("command", COMMANDS, ids=names)
def test_every_command_is_there_with_a_frozen_configuration(command: Command) -> None:
    config_class = command.config_class()
    assert dataclasses.is_dataclass(config_class)
    assert config_class.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert callable(command.run_function())


@pytest.mark.parametrize("command", COMMANDS, ids=names)
def test_every_value_of_every_command_is_described(command: Command) -> None:
    lines = config_help(command.config_class()).splitlines()
    heads = [i for i, line in enumerate(lines) if line.startswith("  ") and line[2] != " "]
    assert len(heads) == len(config_paths(command.config_class()))
    assert [lines[i] for i in heads if i + 1 == len(lines) or not lines[i + 1].startswith("      ")] == []


@pytest.mark.parametrize("file", sorted((ROOT / "training" / "configs").glob("*.yaml")), ids=lambda path: path.stem)
@pytest.mark.parametrize("command", COMMANDS, ids=names)
def test_every_shipped_configuration_is_valid(command: Command, file: Path) -> None:
    assert to_dict(command.load(COMMANDS, [file]))


@pytest.mark.parametrize("command", ["fit", "evaluate"])
def test_the_preset_for_a_gpu_changes_device_batch_and_budget_only(command: str) -> None:
    recipe, preset = (ROOT / "training" / "configs" / f"{name}.yaml" for name in ("recipe", "gpu"))
    on_cpu, on_gpu = (
        flat(to_dict(find(COMMANDS, command).load(COMMANDS, files))) for files in ([recipe], [recipe, preset])
    )
    changed = {name for name in on_cpu.keys() | on_gpu.keys() if on_cpu.get(name) != on_gpu.get(name)}
    of_fit = {"sampler.groups", "sampler.synthetic_groups", "sampler.family_groups"}
    of_fit |= {"training.seconds", "training.trunk_dtype"}
    assert changed == {"device", "base_storage"} | (of_fit if command == "fit" else set())
    assert on_gpu["device"] == "cuda"


def test_names_are_unique() -> None:
    assert len({command.name for command in COMMANDS}) == len(COMMANDS)


def test_the_module_runs(tmp_path: Path) -> None:
    words = ["tasks", f"folder={tmp_path}/tasks", f"workdir={tmp_path}/runs", "synthetic=2", "families=[votes]"]
    done = subprocess.run(
        [sys.executable, "-m", "training", *words],
        cwd=ROOT,
        env=os.environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, "2 tasks" in done.stdout) == (0, True), done.stderr
    assert len(list((tmp_path / "tasks").iterdir())) == 2
    refused = subprocess.run(
        [sys.executable, "-m", "training", "tasks", "sintetic=2"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert refused.returncode == 2
    assert refused.stderr == "python -m training: sintetic: unknown key; did you mean synthetic?\n"
