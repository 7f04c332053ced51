"""`python -m training tiny`: all phases of the method on a tiny random base, in minutes and without a download.

It builds a tiny base and a tiny text encoder with random weights and the real architectures, writes procedural tasks,
and runs the plan `training/configs/tiny.yaml`. The numbers say nothing about the real base. The run only shows that
every phase works on this machine.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

from llgbm.pretrained.tiny import build_tiny_base, build_tiny_encoder
from training.phases.pipeline import run_plan
from training.runs.artefacts import replace_text
from training.tasks.procedural_tasks import synthetic_tasks

PLAN = Path(__file__).parents[1] / "configs" / "tiny.yaml"
PLACE = "runs/tiny"
"""The working directory that the plan's file names."""


@dataclass(frozen=True)
class Config:
    """Settings of the run."""

    workdir: Path = Path(PLACE)
    """Working directory of the whole run."""
    families: tuple[str, ...] = ("letters", "pick_word", "arithmetic", "case_style")
    """Families of procedural tasks."""
    tasks_per_family: int = 3
    """Number of tasks of each family."""
    phases: tuple[str, ...] = ()
    """Only these commands of the plan; empty runs all."""


def run(config: Config) -> None:
    """Make models and tasks, run the plan, and print the seconds of each phase."""
    began = time.monotonic()
    prepare(config)
    plan = config.workdir / "plan.yaml"
    replace_text(plan, PLAN.read_text("utf-8").replace(PLACE, config.workdir.as_posix()))
    seconds = run_plan(plan, config.phases)
    lines = "\n".join(f"  {name:<10} {value:6.1f} s" for name, value in seconds.items())
    print(f"{lines}\n  in all     {time.monotonic() - began:6.1f} s")


def prepare(config: Config) -> None:
    """Write the tiny base, the tiny encoder and the task files, unless they exist."""
    models, tasks = config.workdir / "models", config.workdir / "tasks"
    for folder, build in ((models / "base", build_tiny_base), (models / "encoder", build_tiny_encoder)):
        if not (folder / "model.safetensors").exists():
            build(folder)
    if not tasks.exists():
        tasks.mkdir(parents=True)
        for family in config.families:
            for task in synthetic_tasks(families=[family], limit=config.tasks_per_family):
                content = json.dumps(task.to_dict(), ensure_ascii=False, indent=1) + "\n"
                replace_text(tasks / f"{task.task_id}.json", content)
