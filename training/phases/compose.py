"""`python -m training compose`: measures sums and differences of deltas and of adapters.

For each pair of tasks, a joint teacher is trained on the rows of both, with the settings of the two teachers. Measured
are: the cosine of delta(A) + delta(B) with the joint teacher's delta; whether the deltas of composed adapters are
additive; and the accuracy of each composed adapter on both tasks. With a generator, the adapter for the prompt
"do A, then B" is measured too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llgbm.adapters.peft_io import load_peft_for
from llgbm.base import Base, load_base
from llgbm.checkpoint import Checkpoint, load_generator
from llgbm.config import LoRASpec
from llgbm.delta import DeltaMeter, delta_cosine
from llgbm.errors import ConfigError
from llgbm.evaluation import compute_accuracy_with_lora
from llgbm.linears.frozen_linear import Storage
from llgbm.lora import LoRAWeights, combine
from llgbm.pretrained.find import BASE_0_5B
from llgbm.prompting import AdapterMaker, AdapterRequest
from training.adapters.adapter_split import tasks_by_id
from training.adapters.delta_store import ProbeConfig
from training.adapters.teacher_folder import adapter_folder, load_teachers
from training.cli.config import from_dict
from training.phases.joint_tasks import choose_pairs, joint_task, then_prompt
from training.phases.teachers import Config as TeacherConfig
from training.phases.teachers import Start, make_teacher, require_same_settings
from training.runs.artefacts import read_manifest, relative_name
from training.runs.log import RunLog
from training.runs.results import write_result
from training.tasks.format import Task, tasks_digest
from training.tasks.rows import eval_row


@dataclass(frozen=True)
class Config:
    """Settings of the command."""

    workdir: Path = Path("runs/teachers")
    """Folder of the teachers; joint teachers are written to its subfolder `joint`."""
    folder: Path = Path("tasks/train")
    """Folder of task files."""
    pairs: tuple[tuple[str, str], ...] = ()
    """Pairs of task ids; empty chooses pairs of different categories."""
    num_pairs: int = 3
    """Number of pairs to choose."""
    seed: int = 0
    """Random seed of this choice."""
    checkpoint: Path | None = None
    """A generator artefact for the prompt "do A, then B"; none skips it."""
    base: str = BASE_0_5B
    """Hub id or folder of the frozen base."""
    base_storage: Storage = "float32"
    """How the base's Linear weights are stored."""
    probes: ProbeConfig = field(default_factory=ProbeConfig)
    num_rows: int = 20
    """Test rows of each task."""
    joint_steps: int = 0
    """Steps of a joint teacher; 0 means twice the steps of the two teachers."""


def run(config: Config) -> None:
    """Train missing joint teachers, measure, and write `{workdir}/results/composition.json`."""
    tasks = tasks_by_id(config.folder)
    with RunLog(config.workdir, "compose", config) as log:
        base = load_base(config.base, storage=config.base_storage)
        teachers = load_teachers(config.workdir, list(tasks), base.spec.base_id)
        pairs = _pairs(config, tasks, teachers)
        meter = DeltaMeter(base, config.probes.build(), config.probes.layers_of(base.spec))
        maker = _maker(config.checkpoint, base.spec.base_id, config.base)
        found = []
        with log.progress("compose", total=len(pairs)) as progress:
            for done, (first, second) in enumerate(pairs, 1):
                parts = (teachers[first.task_id], teachers[second.task_id])
                joint = _joint_teacher(config, base, first, second, parts[0].spec)
                adapters = composed(parts, joint, None if maker is None else _generated(maker, first, second))
                found.append(
                    {
                        "pair": [first.task_id, second.task_id],
                        "delta_cosines": compare_deltas(meter, adapters),
                        "accuracy": accuracies(base, adapters, first, second, config.num_rows),
                    }
                )
                progress.update(done, f"{first.task_id} + {second.task_id}")
        made_of = {
            "base_revision": base.revision,
            "data_digest": tasks_digest(list({task.task_id: task for pair in pairs for task in pair}.values())),
        }
        write_result(log, "composition", config, {"pairs": found, "mean": _means(found)}, **made_of)


def composed(
    parts: tuple[LoRAWeights, LoRAWeights], joint: LoRAWeights, generated: LoRAWeights | None = None
) -> dict[str, LoRAWeights | None]:
    """The adapters to measure, by name; None is the plain base."""
    adapters: dict[str, LoRAWeights | None] = {
        "base": None,
        "A": parts[0],
        "B": parts[1],
        "A + B": combine(parts, (1.0, 1.0)),
        "A - B": combine(parts, (1.0, -1.0)),
        "(A + B) / 2": combine(parts, (0.5, 0.5)),
        "trained on both": joint,
    }
    if generated is not None:
        adapters["generated: A, then B"] = generated
    return adapters


def compare_deltas(meter: DeltaMeter, adapters: Mapping[str, LoRAWeights | None]) -> dict[str, float]:
    """Cosines of deltas that are averaged over probes; mean over layers.

    `x ~ y` is the cosine of x with y. An adapter's name stands for its delta, and d(A) is the delta of A.
    """
    with torch.no_grad():
        deltas = {n: meter.deltas([w])[0].mean(0) for n, w in adapters.items() if w is not None}
    first, second, joint = deltas["A"], deltas["B"], deltas["trained on both"]
    pairs: dict[str, tuple[Tensor, Tensor]] = {
        "d(A) + d(B) ~ trained on both": (first + second, joint),
        "A ~ trained on both": (first, joint),
        "B ~ trained on both": (second, joint),
        "A ~ B": (first, second),
        "A + B ~ trained on both": (deltas["A + B"], joint),
        "(A + B) / 2 ~ trained on both": (deltas["(A + B) / 2"], joint),
        "A + B ~ d(A) + d(B)": (deltas["A + B"], first + second),
        "A - B ~ d(A) - d(B)": (deltas["A - B"], first - second),
        "(A + B) / 2 ~ d(A) + d(B)": (deltas["(A + B) / 2"], first + second),
    }
    if (made := deltas.get("generated: A, then B")) is not None:
        pairs["generated ~ trained on both"] = (made, joint)
        pairs["generated ~ d(A) + d(B)"] = (made, first + second)
    return {name: round(delta_cosine(x, y), 4) for name, (x, y) in pairs.items()}


def accuracies(
    base: Base, adapters: Mapping[str, LoRAWeights | None], first: Task, second: Task, num_rows: int
) -> dict[str, list[float]]:
    """Exact match of each adapter on A and on B, with only the input in the context."""
    rows = [[eval_row(base, example) for example in task.test[:num_rows]] for task in (first, second)]
    return {
        name: [round(compute_accuracy_with_lora(base, weights, of_task), 4) for of_task in rows]
        for name, weights in adapters.items()
        if name != "A - B"
    }


def _pairs(config: Config, tasks: Mapping[str, Task], teachers: Mapping[str, LoRAWeights]) -> list[tuple[Task, Task]]:
    if not config.pairs:
        return choose_pairs([tasks[name] for name in teachers], config.num_pairs, config.seed)
    for name in (name for pair in config.pairs for name in pair):
        if name not in teachers:
            raise ConfigError(
                f"{config.workdir} has no teacher of {name!r}; train it first (python -m training teachers)"
            )
    return [(tasks[a], tasks[b]) for a, b in config.pairs]


def _joint_teacher(config: Config, base: Base, first: Task, second: Task, of_part: LoRASpec) -> LoRAWeights:
    """The joint teacher, trained if missing, with the settings of the first task's teacher.

    If that teacher was not trained here, only its spec `of_part` is known: rank and alpha are taken from it, and all
    other settings are defaults.

    Raises:
        ConfigError: the joint teacher exists with other settings or rows, or the two teachers were trained on another
            base or storage.
    """
    task = joint_task(first, second)
    part = adapter_folder(config.workdir, first.task_id, 0)
    record = read_manifest(config.workdir).get(relative_name(config.workdir, part))
    if record and record.command == "teachers":
        settings = from_dict(TeacherConfig, record.config)
        if (settings.base, settings.base_storage) != (config.base, config.base_storage):
            raise ConfigError(
                f"{part} was trained on {settings.base} in {settings.base_storage}, and the joint teacher must use "
                f"the same: set base={settings.base} base_storage={settings.base_storage}"
            )
    else:
        settings = TeacherConfig(
            base=config.base, base_storage=config.base_storage, lora_rank=of_part.rank, lora_alpha=of_part.alpha
        )
    steps = config.joint_steps or 2 * settings.steps
    settings = replace(settings, workdir=config.workdir / "joint", steps=steps, index=0)
    folder = adapter_folder(settings.workdir, task.task_id, 0)
    if folder.exists():
        require_same_settings(settings, task, base, Start.of(settings, base))
    else:
        with RunLog(settings.workdir, "teachers", settings) as log:
            make_teacher(log, base, task, settings)
    return load_peft_for(folder, base.spec.base_id)


def _maker(folder: Path | None, base_id: str, source: str) -> AdapterMaker | None:
    if folder is None:
        return None
    checkpoint: Checkpoint = load_generator(folder)
    checkpoint.manifest.require_base(base_id)
    return AdapterMaker(checkpoint, checkpoint.text_encoder(), base=source)


def _generated(maker: AdapterMaker, first: Task, second: Task) -> LoRAWeights:
    prompt = then_prompt(first.unseen_descriptions[0], second.unseen_descriptions[0])
    return maker.make([AdapterRequest((prompt,))])[0].weights


def _means(found: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Means over the pairs: each cosine, and each accuracy on both tasks."""
    return {
        "delta_cosines": {
            name: round(float(np.mean([pair["delta_cosines"][name] for pair in found])), 4)
            for name in found[0]["delta_cosines"]
        },
        "accuracy": {
            name: round(float(np.mean([pair["accuracy"][name] for pair in found])), 4) for name in found[0]["accuracy"]
        },
    }
