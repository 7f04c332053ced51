"""`python -m training amortise`: trains a generator's trunk to predict the cores that `python -m training cores` found.

With frozen bases, an adapter is determined by its cores, and the distance between the module outputs of two adapters
is a closed formula of their cores (`llgbm.fitting.core_loss`). No step needs the base, so this takes minutes where the
task loss takes hours. The commands `cores` and `amortise` alternate, as in amortised inference: the next cores start at
the trunk's predictions. The target of a task without cores is the generator's own output. Resumable; the targets are
computed once.
"""

from __future__ import annotations

import copy
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from llgbm.base import Base
from llgbm.checkpoint import Checkpoint, TrainingTask, load_generator, save_generator, saved_in
from llgbm.errors import CheckpointError, ConfigError
from llgbm.fitting.core_loss import CoreMetric, CoreObjective, input_moments
from llgbm.fitting.task_losses import label_logits, sft_loss
from llgbm.functional import FunctionalLoRA
from llgbm.generator import LoRAGenerator
from llgbm.linears.frozen_linear import Storage
from llgbm.lora import LoRAWeights
from llgbm.packing import PackedBatch, TaskGroup, TrainingBatch, pack
from llgbm.prompting import TextEncoder
from llgbm.training import TrainingConfig, TrainingState, train
from training.recipe.conditions import TEXTS_FILE, ConditionConfig, ConditionSampler, lasting_encoder
from training.recipe.cores import Cores, cores_digest, generated_cores, load_cores
from training.recipe.generator_base import base_of
from training.recipe.sampler import SamplerConfig, TaskSampler, drawn_in_epochs
from training.runs.artefacts import replace_tensors
from training.runs.fingerprint import RESUMABLE, Fingerprint
from training.runs.log import Progress, RunLog
from training.runs.results import FOLDER, command_of, read_result, write_result
from training.tasks.format import Task, tasks_digest
from training.tasks.training_set import load_training_set

STATE_FILE = "state.pt"
TARGETS_FILE = "targets.safetensors"
_WHERE = ("workdir", "cores", "checkpoint", "tasks", "wordings", "task_ids", "base", "text_encoder")
"""Settings that are paths or ids; digests of the contents are in the fingerprint instead."""
STEPS = (0.0, 0.5, 1.0)
"""Candidate targets, as fractions of the way from the generator's cores (0) to the trained cores (1)."""
DIRECTIONS = (1, 2, 4, 8, 16, 32, 64, 128)
"""Numbers of principal directions whose explained variance is reported."""


@dataclass(frozen=True)
class TrunkTraining:
    """Settings of training a trunk on cores."""

    synthetic_tasks: int = 0
    """Number of procedural tasks. They have no cores; their targets are the generator's own outputs."""
    groups: int = 48
    """Conditions per step from tasks of the folder."""
    synthetic_groups: int = 0
    """Conditions per step from procedural tasks, in addition to `groups`."""
    rows: SamplerConfig = field(
        default_factory=lambda: SamplerConfig(groups=1, tokens_per_group=300, context_fraction=0, shared_fraction=0)
    )
    """Training rows of each task for choosing its target and measuring the second moments of the module inputs."""
    conditions: ConditionConfig = field(default_factory=lambda: ConditionConfig(noise=0.2))
    training: TrainingConfig = field(
        default_factory=lambda: TrainingConfig(steps=800, learning_rate=5e-4, shared_rate=0.0, decay_fraction=0.5)
    )

    def __post_init__(self) -> None:
        if self.training.shared_rate or self.training.weight_decay:
            raise ConfigError("the bases of the cores are frozen: set shared_rate and weight_decay to 0")
        if bool(self.synthetic_tasks) != bool(self.synthetic_groups):
            raise ConfigError("set synthetic_tasks and synthetic_groups, or neither")
        if self.groups < 1:
            raise ConfigError("groups must be at least 1")


@dataclass(frozen=True)
class Config(TrunkTraining):
    """Settings of the command."""

    workdir: Path = Path("runs/amortise")
    """Folder of the state, the result and the new artefact."""
    cores: Path = Path("runs/cores")
    """Folder of the cores."""
    checkpoint: Path = Path("checkpoints/qwen2.5-0.5b")
    """The generator artefact that the cores belong to; training starts from it."""
    tasks: Path = Path("tasks/train")
    """Folder of task files."""
    task_ids: tuple[str, ...] = ()
    """Only these tasks; empty uses all in the folder."""
    wordings: Path | None = None
    """File of additional wordings to train on, see `training.tasks.format.with_more_wordings`."""
    hidden_families: tuple[str, ...] = ()
    """Families of procedural tasks to exclude."""
    base: str = ""
    """Hub id or folder of the base; by default the checkpoint's."""
    text_encoder: str = ""
    """Hub id or folder of the text encoder; by default the checkpoint's."""
    base_storage: Storage = "float32"
    """How the base's Linear weights are stored while targets are computed."""

    @property
    def artefact(self) -> Path:
        """Folder of the new generator."""
        return self.workdir / "generator"


def run(config: Config, *, texts: Path | None = None) -> None:
    """Train, measure on seen and unseen descriptions, and write the artefact.

    Args:
        config: settings of the command.
        texts: file of embeddings shared by several commands; by default a file in `workdir`.

    Raises:
        ConfigError: no task has cores.
    """
    checkpoint = load_generator(config.checkpoint)
    tasks, made_up, _ = load_training_set(
        config.tasks,
        config.task_ids,
        wordings=config.wordings,
        num_synthetic=config.synthetic_tasks,
        hidden_families=config.hidden_families,
    )
    cores = load_cores(config.cores, checkpoint, [task.task_id for task in tasks])
    if not cores:
        raise ConfigError(f"{config.cores} has no cores of these tasks; run the command cores")
    encoder_id, texts = config.text_encoder or checkpoint.manifest.encoder_id, texts or config.workdir / TEXTS_FILE
    with lasting_encoder(encoder_id, texts) as encoder, RunLog(config.workdir, "amortise", config) as log:
        made_with = Fingerprint.of(
            config,
            without=(*_WHERE, *RESUMABLE),
            generator=checkpoint.manifest.digest,
            encoder=encoder_id,
            cores_digest=cores_digest(cores),
            tasks_digest=tasks_digest([*tasks, *made_up]),
        )
        made_with.require_same_run(config.workdir, [STATE_FILE, TARGETS_FILE])
        if _is_done(config):
            log.logger.info("already done", artefact=str(config.artefact))
            return
        conditions = ConditionSampler([*tasks, *made_up], encoder, config.conditions, config.training.seed)
        targets = Targets.load(config.workdir / TARGETS_FILE)
        if targets is None:
            base = base_of(checkpoint, config.base, config.base_storage)
            with log.progress("targets", total=len(tasks)) as progress:
                targets = find_targets(
                    base, encoder, checkpoint.generator, [*tasks, *made_up], conditions, cores, config, progress
                )
            targets.save(config.workdir / TARGETS_FILE)
        generator = copy.deepcopy(checkpoint.generator).requires_grad_(True)
        objective = CoreObjective(CoreMetric(generator, targets.moments), targets.cores)
        before = distances(generator, objective, encoder, tasks)
        directions = {
            "targets": directions_of(objective.targets[: len(tasks)]),
            "start": directions_of(outputs(generator, objective, conditions, len(tasks))),
        }
        steps = Counter(targets.steps.values())
        log.logger.info("targets", tasks=len(cores), steps=dict(steps), **before)
        started = time.monotonic()
        with log.progress("amortise", total=config.training.steps) as progress:

            def on_step(state: TrainingState) -> None:
                log.metrics(
                    step=state.step, series="", loss=state.loss, grad_norm=state.grad_norm, seconds=state.seconds
                )
                progress.update(state.step + 1, f"loss {state.loss:.3f}")

            batches = Batches(tasks, made_up, conditions, config)
            train(
                generator, objective, batches, config.training, state_path=config.workdir / STATE_FILE, on_step=on_step
            )
        after = distances(generator, objective, encoder, tasks)
        directions["end"] = directions_of(outputs(generator, objective, conditions, len(tasks)))
        found: dict[str, Any] = {
            "directions": directions,
            "start": before,
            "end": after,
            "tasks_with_cores": len(cores),
            "steps_to_cores": {f"{step:g}": steps[step] for step in STEPS},
            "last_run_seconds": round(time.monotonic() - started),
        }
        digest = save(config, checkpoint, generator, tasks, encoder, found)
        made_of: dict[str, Any] = {
            "base_revision": targets.base_revision,
            "data_digest": tasks_digest([*tasks, *made_up]),
        }
        log.record_artefact(config.artefact, digest=digest, **made_of)
        write_result(log, "amortise", config, found | {"generator": digest}, **made_of)
        log.logger.info("result", **after)


def _is_done(config: Config) -> bool:
    """Whether this command has finished in this workdir; the result is the last file it writes."""
    path = config.workdir / FOLDER / "amortise.json"
    if not path.exists():
        return False
    found = read_result(path)
    if found["command"] != command_of("amortise", config):  # for example with fewer steps
        return False
    return config.artefact.exists() and found["generator"] == load_generator(config.artefact).manifest.digest


def save(
    config: Config,
    checkpoint: Checkpoint,
    generator: LoRAGenerator,
    tasks: Sequence[Task],
    encoder: TextEncoder,
    found: Mapping[str, Any],
) -> str:
    """Write the artefact, with the tasks and the prompt index of the checkpoint and without its confidence.

    New tasks are appended to the manifest and to the prompt index. New wordings of known tasks are listed in the
    manifest, but not indexed. If the same generator exists already, it is kept with its calibration.

    Returns:
        The artefact's digest.
    """
    started_from = {"digest": checkpoint.manifest.digest, "made_by": checkpoint.manifest.made_by}
    made_by = {"command": command_of("amortise", config), "seed": config.training.seed, **found}
    seen = {task.task_id: task.seen_descriptions for task in tasks}
    listed = tuple(
        replace(t, descriptions=tuple(dict.fromkeys((*t.descriptions, *seen.get(t.task_id, ())))))
        for t in checkpoint.manifest.tasks
    )
    known = {task.task_id for task in listed}
    new = [task for task in tasks if task.task_id not in known]
    manifest = replace(
        checkpoint.manifest,
        tasks=(
            *listed,
            *(TrainingTask(t.task_id, t.category, t.source, t.licence, tuple(t.seen_descriptions)) for t in new),
        ),
        made_by=made_by | {"started_from": started_from},
        confidence={},
        context_choice=None,
    )
    blocks = [*checkpoint.prompt_index.blocks(len(listed)), *(encoder.encode(t.seen_in_file) for t in new)]
    there = saved_in(config.artefact, generator, manifest)
    return (there or save_generator(config.artefact, generator, manifest, blocks)).digest


@dataclass(frozen=True, eq=False)
class Targets:
    """The cores that the trunk shall predict for each task.

    Attributes:
        cores: by task id, Q (modules, r, R) and P (modules, R, r), float32; P includes the gate.
        steps: for each task with trained cores, the chosen entry of `STEPS`.
        moments: second moments of the module inputs on training rows, with each task's target applied, projected on
            the generator's input bases, (modules, R, R) float32.
        base_revision: revision of the base that they were measured on.
    """

    cores: dict[str, tuple[Tensor, Tensor]]
    steps: dict[str, float]
    moments: Tensor
    base_revision: str

    def save(self, path: Path) -> None:
        """Write the targets atomically."""
        q, p = (torch.stack(sides) for sides in zip(*self.cores.values(), strict=True))
        said = {"tasks": list(self.cores), "steps": self.steps, "base_revision": self.base_revision}
        replace_tensors(path, {"q": q, "p": p, "moments": self.moments}, {"targets": json.dumps(said)})

    @classmethod
    def load(cls, path: Path) -> Targets | None:
        """Read the targets; None if the file does not exist.

        Raises:
            CheckpointError: the file is unreadable.
        """
        if not path.exists():
            return None
        try:
            with safe_open(path, "pt") as file:
                said = json.loads(file.metadata()["targets"])
                q, p, moments = (file.get_tensor(name) for name in ("q", "p", "moments"))
            cores = {task: (q[i], p[i]) for i, task in enumerate(said["tasks"])}
            return cls(cores, said["steps"], moments, said["base_revision"])
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path} has no readable targets: {error}; delete it to find them again") from error


@torch.no_grad()
def chosen_target(
    base: Base, functional: FunctionalLoRA, batch: PackedBatch, generator: LoRAGenerator, start: Cores, trained: Cores
) -> tuple[Cores, float]:
    """Interpolate from `start` to `trained`; return the cores with the lowest loss on the batch, and their step.

    A few training steps on a few rows make some cores worse than their start, and overshoot with others. The batch is
    drawn anew from the training rows, so the trained cores may have seen some of it.
    """
    between = [Cores(torch.lerp(start.q, trained.q, s), torch.lerp(start.p, trained.p, s)) for s in STEPS]
    logits = (label_logits(base, functional, batch, [cores.adapter(generator)]) for cores in between)
    losses = [float(sft_loss(found, batch)) for found in logits]
    best = int(np.argmin(losses))
    return between[best], STEPS[best]


@torch.no_grad()
def find_targets(
    base: Base,
    encoder: TextEncoder,
    generator: LoRAGenerator,
    tasks: Sequence[Task],
    conditions: ConditionSampler,
    trained: Mapping[str, Cores],
    config: Config,
    progress: Progress,
) -> Targets:
    """Choose the target of each task; it starts at the mean of the generator's cores for the task's descriptions."""
    functional = FunctionalLoRA(base.model)
    cores: dict[str, Cores] = {}
    steps: dict[str, float] = {}
    read: list[tuple[PackedBatch, LoRAWeights | None]] = []
    for index, task in enumerate(tasks):
        target = generated_cores(generator, conditions.descriptions(index))
        if task.task_id in trained:
            sampler = TaskSampler([task], base, encoder, config.rows, config.training.seed + 1, with_context_rows=False)
            batch = pack([sampler(0)[0].rows])
            target, step = chosen_target(base, functional, batch, generator, target, trained[task.task_id])
            steps[task.task_id] = step
            read.append((batch, target.adapter(generator)))
            progress.update(index + 1, f"{task.task_id}: {step:g} of the way")
        cores[task.task_id] = target
    moments = input_moments(base, functional, generator, read)
    return Targets({task: (found.q, found.p) for task, found in cores.items()}, steps, moments, base.revision)


@torch.no_grad()
def distances(
    generator: LoRAGenerator, objective: CoreObjective, encoder: TextEncoder, tasks: Sequence[Task]
) -> dict[str, float]:
    """Mean distance to the targets for seen and unseen descriptions; predicting the mean of all targets scores 1."""
    found = {}
    for name in ("seen_descriptions", "unseen_descriptions"):
        each = []
        for task in tasks:
            texts = getattr(task, name)
            if texts:
                places = [objective.place(task.task_id)] * len(texts)
                each.append(float(objective.distances(generator, encoder.encode(texts), places).mean()))
        found[name] = round(float(np.mean(each)), 4)
    return found


@torch.no_grad()
def outputs(generator: LoRAGenerator, objective: CoreObjective, conditions: ConditionSampler, count: int) -> Tensor:
    """The generator's outputs for the first `count` tasks, (count, modules, R, R), means over seen descriptions."""
    return torch.stack([objective.outputs(generator, conditions.descriptions(i)).mean(0) for i in range(count)])


def directions_of(tasks: Tensor) -> dict[str, float]:
    """Fraction of the variance of tasks (n, ...) along their first principal directions, by number of directions."""
    # the Gram matrix (n, n) has the nonzero eigenvalues of the covariance, and n is far smaller than the feature size
    centred = (tasks - tasks.mean(0)).flatten(1).double()
    variances = torch.linalg.eigvalsh(centred @ centred.T).flip(0).clamp_min(0).cumsum(0)
    counts = [count for count in DIRECTIONS if count < len(tasks)]
    return {str(count): round(float(variances[count - 1] / variances[-1]), 4) for count in counts}


class Batches:
    """Conditions for `llgbm.training.train`: every task once per epoch. A batch depends only on its step number."""

    def __init__(
        self, tasks: Sequence[Task], made_up: Sequence[Task], conditions: ConditionSampler, config: Config
    ) -> None:
        self._tasks, self._conditions, self._seed = [*tasks, *made_up], conditions, config.training.seed
        self._parts = [(0, len(tasks), config.groups), (len(tasks), len(made_up), config.synthetic_groups)]

    def __call__(self, step: int) -> TrainingBatch:
        """The groups of step `step`, which have no rows."""
        rng = np.random.default_rng([self._seed, step])
        groups = []
        for first, count, wanted in self._parts:
            for place in drawn_in_epochs(count, step, wanted, self._seed, stream=first):
                index = first + place
                wording = int(rng.integers(len(self._tasks[index].seen_descriptions)))
                groups.append(TaskGroup(self._tasks[index].task_id, self._conditions.draw(index, wording, rng)))
        return groups
