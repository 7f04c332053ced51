"""Six small teachers on the tiny base and a small generator, each made once a session."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from llgbm.config import GeneratorConfig
from llgbm.training import TrainingConfig
from tests.small_generator import calibrate_artefact
from training.phases import teachers
from training.recipe import fit
from training.recipe.progress_check import CheckConfig
from training.recipe.sampler import SamplerConfig
from training.tasks.format import Example, Task

ANIMALS = (
    "cat",
    "dog",
    "cow",
    "pig",
    "hen",
    "owl",
    "ant",
    "bee",
    "fox",
    "bat",
    "rat",
    "eel",
    "emu",
    "yak",
    "ape",
    "cod",
)


def small_task(task_id: str, category: str, verb: str, inputs: list[str], outputs: list[str]) -> Task:
    """A task of short rows: every fourth one to test."""
    rows = [Example(given, wanted) for given, wanted in zip(inputs, outputs, strict=True)]
    wordings = (
        f"{verb} it.",
        f"Please {verb}.",
        f"I want you to {verb}.",
        f"Your task: {verb}.",
        f"You {verb} the input.",
    )
    return Task(
        task_id, category, "made for tests", "CC0-1.0", wordings, "exact_match", None,
        tuple(row for i, row in enumerate(rows) if i % 4 != 3), tuple(rows[3::4]),
    )  # fmt: skip


def small_tasks() -> list[Task]:
    """Two tasks each of three categories; those of different categories share no input."""
    numbers = [str(i) for i in range(10, 26)]
    pairs = [f"{a} {b}" for a, b in zip(ANIMALS, ANIMALS[1:] + ANIMALS[:1], strict=True)]
    words = list(ANIMALS)
    return [
        small_task("upper", "case", "write in capitals", words, [w.upper() for w in words]),
        small_task("title", "case", "capitalise", words, [w.title() for w in words]),
        small_task("next", "numbers", "add one", numbers, [str(int(n) + 1) for n in numbers]),
        small_task(
            "parity", "numbers", "say whether it is even", numbers, ["no" if int(n) % 2 else "yes" for n in numbers]
        ),
        small_task("first", "pick", "give the first word", pairs, [p.split()[0] for p in pairs]),
        small_task("last", "pick", "give the last word", pairs, [p.split()[1] for p in pairs]),
    ]


@pytest.fixture(scope="session")
def tasks_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the six task files."""
    folder = tmp_path_factory.mktemp("tasks")
    for task in small_tasks():
        (folder / f"{task.task_id}.json").write_text(json.dumps(task.to_dict()), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def trained_workdir(tmp_path_factory: pytest.TempPathFactory, tasks_folder: Path, tiny_base_path: Path) -> Path:
    """Six teachers, trained for a few steps. Shared: take `workdir` to change something."""
    workdir = tmp_path_factory.mktemp("trained")
    teachers.run(teacher_config(workdir, tasks_folder, tiny_base_path))
    return workdir


@pytest.fixture
def workdir(trained_workdir: Path, tmp_path: Path) -> Path:
    """The test's own copy of the working folder."""
    return shutil.copytree(trained_workdir, tmp_path / "work")


def teacher_config(workdir: Path, tasks_folder: Path, base: Path) -> teachers.Config:
    """Settings of the teachers of `trained_workdir`."""
    return teachers.Config(
        workdir=workdir, folder=tasks_folder, base=str(base), lora_rank=4, lora_alpha=8.0, steps=6, rows_per_step=4,
        learning_rate=1e-2,
    )  # fmt: skip


@pytest.fixture(scope="session")
def generator_folder(
    tmp_path_factory: pytest.TempPathFactory, tasks_folder: Path, tiny_base_path: Path, tiny_encoder_path: Path
) -> Path:
    """A generator fitted for two steps on five of the six tasks."""
    config = fit.Config(
        workdir=tmp_path_factory.mktemp("fit"), tasks=tasks_folder, base=str(tiny_base_path),
        text_encoder=str(tiny_encoder_path), task_ids=("first", "last", "next", "parity", "upper"),
        generator=GeneratorConfig(basis_rank=8, hidden_size=16, num_blocks=1), sampler=SamplerConfig(groups=2),
        training=TrainingConfig(steps=2, warmup_steps=1), check=CheckConfig(every=0),
    )  # fmt: skip
    fit.run(config)
    calibrate_artefact(config.artefact)
    return config.artefact
