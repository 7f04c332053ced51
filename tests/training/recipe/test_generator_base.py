import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llgbm.checkpoint import MANIFEST_FILE, load_generator
from llgbm.errors import CheckpointError
from training.phases import compose, teachers
from training.quality import evaluate
from training.recipe import calibrate
from training.recipe.generator_base import base_of


@pytest.fixture
def foreign(generator_folder: Path, tmp_path: Path) -> Path:
    """A generator for another base of the same shape."""
    folder = shutil.copytree(generator_folder, tmp_path / "foreign")
    manifest = replace(load_generator(folder).manifest, base_id="Qwen/another")
    (folder / MANIFEST_FILE).write_text(manifest.to_json(), "utf-8")
    return folder


def test_the_base_is_the_manifests_or_the_named_one_if_it_is_that(generator_folder: Path, tiny_base_path: Path) -> None:
    checkpoint = load_generator(generator_folder)
    assert base_of(checkpoint, str(tiny_base_path), "float32").spec.base_id == checkpoint.manifest.base_id


COMMANDS: dict[str, Callable[..., Any]] = {
    "calibrate": lambda foreign, own, **more: calibrate.run(
        calibrate.Config(checkpoint=foreign, hidden_families=(), **more)
    ),
    "evaluate": lambda foreign, own, **more: evaluate.run(
        evaluate.Config(checkpoint=foreign, heldout=None, output=more["workdir"] / "table.json", **more)
    ),
    "evaluate's rival": lambda foreign, own, **more: evaluate.run(
        evaluate.Config(checkpoint=own, multitask=foreign, heldout=None, output=more["workdir"] / "table.json", **more)
    ),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_another_base_of_the_same_shape_is_refused(
    command: str, foreign: Path, generator_folder: Path, tasks_folder: Path, tiny_base_path: Path, tmp_path: Path
) -> None:
    before = {path: path.read_bytes() for path in foreign.iterdir()}
    with pytest.raises(CheckpointError, match="makes adapters for Qwen/another, not for "):
        COMMANDS[command](
            foreign, generator_folder, workdir=tmp_path / "work", tasks=tasks_folder, base=str(tiny_base_path)
        )
    assert {path: path.read_bytes() for path in foreign.iterdir()} == before


def test_no_teacher_starts_from_an_adapter_of_another_base(
    foreign: Path, tasks_folder: Path, tiny_base_path: Path, tmp_path: Path
) -> None:
    config = teachers.Config(
        workdir=tmp_path / "work", folder=tasks_folder, tasks=("upper",), base=str(tiny_base_path), start=foreign
    )
    with pytest.raises(CheckpointError, match="makes adapters for Qwen/another, not for "):
        teachers.run(config)


def test_no_adapter_of_another_base_is_composed_with(
    foreign: Path, workdir: Path, tasks_folder: Path, tiny_base_path: Path
) -> None:
    config = compose.Config(
        workdir=workdir, folder=tasks_folder, pairs=(("upper", "next"),), base=str(tiny_base_path), checkpoint=foreign
    )
    with pytest.raises(CheckpointError, match="makes adapters for Qwen/another, not for "):
        compose.run(config)
