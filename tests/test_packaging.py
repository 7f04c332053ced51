"""The content of the wheel; and its command works without the working tree."""

from __future__ import annotations

import json
import os
import site
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from zipfile import ZipFile

import pytest

from llgbm.adapters.peft_io import load_peft
from llgbm.base import Base

ROOT = Path(__file__).resolve().parent.parent
Command = Callable[..., subprocess.CompletedProcess[str]]


def test_a_wheel_brings_the_generator_the_page_and_the_configurations(wheel: Path, tmp_path: Path) -> None:
    installed = tmp_path / "installed"
    with ZipFile(wheel) as archive:
        archive.extractall(installed)
    shipped = ROOT / "checkpoints" / "qwen2.5-0.5b"
    asked = "import service.settings as s; print(s.__file__, s.DEFAULT_CHECKPOINT, sep='\\n')"
    found = subprocess.run(
        [sys.executable, "-c", asked],
        cwd=installed,
        env={"PYTHONPATH": "."},
        check=True,
        capture_output=True,
        text=True,
    )
    module, checkpoint = map(Path, found.stdout.splitlines())
    assert module.resolve() == installed / "service" / "settings.py"
    assert checkpoint.resolve() == installed / "service" / "checkpoints" / "qwen2.5-0.5b"
    for name in ("generator.safetensors", "manifest.json"):
        assert (installed / checkpoint / name).read_bytes() == (shipped / name).read_bytes()
    for name in (
        "service/static/index.html",
        "training/configs/recipe.yaml",
        "training/tasks/wordings.json",
        "llgbm/py.typed",
    ):
        assert (installed / name).read_bytes() == (ROOT / name).read_bytes()
    assert {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")} == {
        "llgbm", "llgbm_cli", "service", "training",
    }  # fmt: skip


@pytest.fixture(scope="module")
def command(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Command:
    """The installed `llgbm` of a new environment, with the dependencies of the tests' environment."""
    folder = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True)
    python = folder / "venv" / "bin" / "python"
    (packages,) = (folder / "venv" / "lib").glob("python*/site-packages")
    # a folder that a .pth file adds comes after the environment's own, and its own .pth files are not read: the
    # working tree, which they would add, stays unseen
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()), "utf-8")
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", "--quiet"]
    subprocess.run([*install, "--disable-pip-version-check", str(wheel)], check=True, capture_output=True)

    def run(*words: str, said: str = "") -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("LLGBM_", "PYTHON"))}
        return subprocess.run(
            [str(folder / "venv" / "bin" / "llgbm"), *words],
            cwd=folder, env=environment | {"HF_HUB_OFFLINE": "1", "COLUMNS": "120"}, input=said, capture_output=True,
            text=True, check=False, timeout=280,
        )  # fmt: skip

    return run


def test_the_command_of_an_installed_wheel_helps(command: Command) -> None:
    done = command("--help")
    assert done.returncode == 0, done.stderr
    for name in ("serve", "generate", "chat", "train"):
        assert f" {name} " in done.stdout


def test_the_command_of_an_installed_wheel_chats_trains_and_serves(
    command: Command, tiny_base_path: Path, tiny_checkpoint_path: Path
) -> None:
    words = ["chat", "Reverse the letters.", "--once", "--max-tokens", "4", "--json", "--storage", "float32"]
    done = command(*words, "--base", str(tiny_base_path), "--checkpoint", str(tiny_checkpoint_path), said="cheese")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["context_used"] == "description"
    done = command("train", "fit", "--help")
    assert (done.returncode, done.stdout.split(":")[0]) == (0, "llgbm train fit"), done.stderr
    done = command("serve", "--port", "70000")  # the service's settings refuse it
    assert (done.returncode, done.stderr.split(":")[0]) == (2, "LLGBM_PORT"), done.stderr


def test_the_command_of_an_installed_wheel_writes_an_adapter(
    command: Command, tiny_base: Base, tiny_checkpoint_path: Path, tmp_path: Path
) -> None:
    words = ["generate", "Reverse the letters.", "--out", str(tmp_path / "reverse"), "--json"]
    done = command(*words, "--checkpoint", str(tiny_checkpoint_path))
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    weights, base_id = load_peft(tmp_path / "reverse")
    assert base_id == tiny_base.spec.base_id
    assert (made["rank"], made["nearest_tasks"][0]["task_id"]) == (weights.spec.rank, "task_1")
