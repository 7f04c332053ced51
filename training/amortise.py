"""`python -m training amortise`: teaches a generator's trunk the cores that `python -m training cores` has found.

With the bases standing still, an adapter is its cores, and how far two of them move the base's modules apart is a small
closed formula (`llgbm.core_loss`). So no step needs the base: minutes for what the task loss takes hours for. Cores and
this alternate, as in amortised inference: what the trunk has learnt is where the next cores start. Tasks without cores
stay with what the generator makes of them. Resumable.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llgbm.base import Base, load_base
from llgbm.batches import TaskGroup, TrainingBatch
from llgbm.checkpoint import Checkpoint, load_generator, save_generator
from llgbm.core_loss import CoreMetric, CoreObjective, input_moments
from llgbm.errors import ConfigError
from llgbm.frozen_linear import Storage
from llgbm.functional import FunctionalLoRA
from llgbm.generator import LoRAGenerator
from llgbm.packing import PackedBatch, pack
from llgbm.prompting import TextEncoder
from llgbm.task_losses import label_logits, sft_loss
from llgbm.text_encoder import PretrainedTextEncoder
from llgbm.training import TrainingConfig, TrainingState, train
from training.conditions import ConditionConfig, ConditionSampler
from training.cores import Cores, generated_cores, load_cores
from training.results import command_of, write_result
from training.runlog import Progress, RunLog
from training.sampler import SamplerConfig, TaskSampler, drawn_in_epochs
from training.synthetic_tasks import FAMILIES, synthetic_tasks
from training.tasks import Task, load_tasks, tasks_digest, with_more_wordings

STATE_FILE = "state.pt"
STEPS = (0.0, 0.5, 1.0)
"""How far a target may lie from what the generator makes to the trained cores."""
DIRECTIONS = (1, 2, 4, 8, 16, 32, 64, 128)
"""Principal directions whose share is reported."""


@dataclass(frozen=True)
class Config:
    """Settings of a fit to cores."""

    workdir: Path = Path("runs/amortise")
    """Folder of the state, the result and the new artefact."""
    cores: Path = Path("runs/cores")
    """Folder of the cores."""
    checkpoint: Path = Path("checkpoints/qwen2.5-0.5b")
    """The artefact whose cores they are; the fit starts from it."""
    tasks: Path = Path("tasks/train")
    """Folder of task files."""
    task_ids: tuple[str, ...] = ()
    """Only these tasks; empty for all in the folder."""
    wordings: Path | None = None
    """File of more wordings of these tasks to train on, see `training.tasks.with_more_wordings`."""
    synthetic_tasks: int = 0
    """Procedural tasks, which have no cores and are held where they are."""
    hidden_families: tuple[str, ...] = ()
    """Families of procedural tasks that are kept from this."""
    base: str = ""
    """Hub id or folder of the base; by default the one that the checkpoint names."""
    text_encoder: str = ""
    """Hub id or folder of the text encoder; by default the one that the checkpoint names."""
    base_storage: Storage = "float32"
    """How the base's Linear weights are stored, for the inputs that the modules read."""
    groups: int = 48
    """Conditions of tasks of the folder in a step."""
    synthetic_groups: int = 0
    """Conditions of procedural tasks in a step, beside these."""
    rows: SamplerConfig = field(
        default_factory=lambda: SamplerConfig(groups=1, tokens_per_group=300, context_fraction=0, shared_fraction=0)
    )
    """Training rows of each task that choose its target, and whose inputs the modules' outputs are measured on."""
    conditions: ConditionConfig = field(default_factory=lambda: ConditionConfig(noise=0.2))
    training: TrainingConfig = field(
        default_factory=lambda: TrainingConfig(steps=800, learning_rate=5e-4, shared_rate=0.0, decay_fraction=0.5)
    )

    def __post_init__(self) -> None:
        if self.training.shared_rate or self.training.weight_decay:
            raise ConfigError("the bases that the cores belong to stand still: shared_rate and weight_decay are 0")
        if bool(self.synthetic_tasks) != bool(self.synthetic_groups):
            raise ConfigError("set synthetic_tasks and synthetic_groups, or neither")
        if self.groups < 1:
            raise ConfigError("groups must be at least 1")

    @property
    def artefact(self) -> Path:
        """Folder of the generator that the fit makes."""
        return self.workdir / "generator"


def run(config: Config) -> None:
    """Fit, measure on seen and unseen descriptions, and write the artefact.

    Raises:
        ConfigError: no task has cores.
    """
    checkpoint = load_generator(config.checkpoint)
    tasks = load_tasks(config.tasks, config.task_ids or None)
    if config.wordings:
        tasks = with_more_wordings(tasks, config.wordings)
    shown = [family for family in FAMILIES if family not in config.hidden_families]
    made_up = synthetic_tasks(families=shown, limit=config.synthetic_tasks) if config.synthetic_tasks else []
    cores = load_cores(config.cores, checkpoint, [task.task_id for task in tasks])
    if not cores:
        raise ConfigError(f"{config.cores} has no cores of these tasks; run the command cores")
    encoder = PretrainedTextEncoder(config.text_encoder or checkpoint.manifest.encoder_id)
    generator = load_generator(config.checkpoint).generator.requires_grad_(True)
    with RunLog(config.workdir, "amortise", config) as log:
        base = load_base(config.base or checkpoint.manifest.base_id, storage=config.base_storage)
        conditions = ConditionSampler([*tasks, *made_up], encoder, config.conditions, config.training.seed)
        with log.progress("targets", total=len(tasks)) as progress:
            targets = all_targets(
                base, encoder, checkpoint.generator, [*tasks, *made_up], conditions, cores, config, progress
            )
        metric = CoreMetric(generator, moments_of(base, checkpoint.generator, targets.values()))
        objective = CoreObjective(metric, {task: (t.cores.q, t.cores.p) for task, t in targets.items()})
        before = distances(generator, objective, encoder, tasks)
        directions = {
            "targets": directions_of(objective.targets[: len(tasks)]),
            "start": directions_of(outputs(generator, objective, conditions, len(tasks))),
        }
        steps = Counter(targets[task].step for task in cores)
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
            "last_session_seconds": round(time.monotonic() - started),
        }
        digest = save(config, checkpoint, generator, tasks, found)
        log.record_artefact(
            config.artefact, base_revision=base.revision, digest=digest, data_digest=tasks_digest(tasks)
        )
        write_result(log, "amortise", config, found | {"generator": digest}, base_revision=base.revision)
        log.logger.info("result", **after)


def save(
    config: Config, checkpoint: Checkpoint, generator: LoRAGenerator, tasks: Sequence[Task], found: Mapping[str, Any]
) -> str:
    """Write the artefact: the tasks and the prompt index of the one before; its confidence has to be measured anew.

    Wordings that these tasks have beside those that the generator knew are listed, but not in the prompt index.

    Returns:
        The artefact's digest.
    """
    started_from = {"digest": checkpoint.manifest.digest, "made_by": checkpoint.manifest.made_by}
    made_by = {"command": command_of("amortise", config), "seed": config.training.seed, **found}
    more = {task.task_id: task.more_descriptions for task in tasks}
    listed = tuple(
        replace(t, descriptions=tuple(dict.fromkeys((*t.descriptions, *more.get(t.task_id, ())))))
        for t in checkpoint.manifest.tasks
    )
    manifest = replace(
        checkpoint.manifest, tasks=listed, made_by=made_by | {"started_from": started_from}, confidence={}
    )
    index = checkpoint.prompt_index
    blocks = [index.embeddings[index.task == place] for place in range(len(manifest.tasks))]
    return save_generator(config.artefact, generator, manifest, blocks).digest


@dataclass(frozen=True, eq=False)
class Target:
    """What the trunk is to make of a task.

    Attributes:
        step: how far it lies from what the generator makes, 0, to the trained cores, 1.
        batch: training rows that were read under these cores; None for tasks without trained cores.
    """

    cores: Cores
    step: float = 0.0
    batch: PackedBatch | None = None


@torch.no_grad()
def chosen_target(
    base: Base, functional: FunctionalLoRA, sampler: TaskSampler, generator: LoRAGenerator, start: Cores, trained: Cores
) -> Target:
    """The best of `STEPS` from `start` to `trained`, by the loss on rows that are drawn anew.

    A few steps of a few rows make some cores worse than they were, and of some more than the best of them.
    """
    batch = pack([sampler(0)[0].rows])
    between = [Cores(torch.lerp(start.q, trained.q, s), torch.lerp(start.p, trained.p, s)) for s in STEPS]
    logits = (label_logits(base, functional, batch, [cores.adapter(generator)]) for cores in between)
    losses = [float(sft_loss(found, batch)) for found in logits]
    best = int(np.argmin(losses))
    return Target(between[best], STEPS[best], batch)


@torch.no_grad()
def all_targets(
    base: Base,
    encoder: TextEncoder,
    generator: LoRAGenerator,
    tasks: Sequence[Task],
    conditions: ConditionSampler,
    trained: Mapping[str, Cores],
    config: Config,
    progress: Progress,
) -> dict[str, Target]:
    """For each task where it should go from the mean of what the generator makes of its descriptions."""
    functional = FunctionalLoRA(base.model)
    targets: dict[str, Target] = {}
    for done, (task, descriptions) in enumerate(zip(tasks, conditions.descriptions, strict=True), 1):
        start = generated_cores(generator, descriptions)
        found = trained.get(task.task_id)
        if found is None:
            targets[task.task_id] = Target(start)
            continue
        sampler = TaskSampler([task], base, encoder, config.rows, config.training.seed + 1, with_context_rows=False)
        targets[task.task_id] = chosen_target(base, functional, sampler, generator, start, found)
        progress.update(done, f"{task.task_id}: {targets[task.task_id].step:g} of the way")
    return targets


def moments_of(base: Base, generator: LoRAGenerator, targets: Iterable[Target]) -> Tensor:
    """The second moments of what the modules read on training rows, each task under its own target."""
    with_rows = [(t.batch, t.cores.adapter(generator)) for t in targets if t.batch]
    return input_moments(base, FunctionalLoRA(base.model), generator, with_rows)


@torch.no_grad()
def distances(
    generator: LoRAGenerator, objective: CoreObjective, encoder: TextEncoder, tasks: Sequence[Task]
) -> dict[str, float]:
    """Mean distance from the targets for seen and unseen descriptions; 1 is that of the mean of all targets."""
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
    """What the generator makes of the first `count` tasks, (count, modules, R, R), means over seen descriptions."""
    return torch.stack([objective.outputs(generator, seen).mean(0) for seen in conditions.descriptions[:count]])


def directions_of(tasks: Tensor) -> dict[str, float]:
    """The share of what tasks (n, ...) differ in that lies along their first principal directions, by their number."""
    centred = (tasks - tasks.mean(0)).flatten(1).double()
    variances = torch.linalg.eigvalsh(centred @ centred.T).flip(0).clamp_min(0).cumsum(0)
    counts = [count for count in DIRECTIONS if count < len(tasks)]
    return {str(count): round(float(variances[count - 1] / variances[-1]), 4) for count in counts}


class Batches:
    """Conditions for `llgbm.training.train`: in an epoch, every task once. Of a step's number alone."""

    def __init__(
        self, tasks: Sequence[Task], made_up: Sequence[Task], conditions: ConditionSampler, config: Config
    ) -> None:
        self._tasks, self._conditions, self._seed = [*tasks, *made_up], conditions, config.training.seed
        self._parts = [(0, len(tasks), config.groups), (len(tasks), len(made_up), config.synthetic_groups)]

    def __call__(self, step: int) -> TrainingBatch:
        """The groups of `step`, without rows."""
        rng = np.random.default_rng([self._seed, step])
        groups = []
        for first, count, wanted in self._parts:
            for place in drawn_in_epochs(count, step, wanted, self._seed, stream=first):
                index = first + place
                wording = int(rng.integers(len(self._tasks[index].seen_descriptions)))
                groups.append(TaskGroup(self._tasks[index].task_id, self._conditions.draw(index, wording, rng)))
        return groups
