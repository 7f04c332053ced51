"""`python -m training teachers`: trains one LoRA for each task; resumable task by task.

All teachers of a working folder start from one adapter: PEFT's initialisation with a fixed seed, or the shared adapter
of a generator artefact, which needs fewer steps. Layout: `{workdir}/{task}/{task}_{idx}/` with PEFT's two files and
`prompts.json`, which contains the descriptions to train on and some examples. `{workdir}/manifest.json` is the index.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from llgbm.adapters.index import (
    INDEX_FILE,
    PROMPTS_FILE,
    AdapterEntry,
    AdapterPrompts,
    load_index,
    save_index,
    save_prompts,
)
from llgbm.adapters.peft_io import CONFIG_FILE, content_digest, save_peft
from llgbm.base import Base, load_base
from llgbm.chat import answer_ids, prompt_ids, task_messages
from llgbm.config import LoRASpec
from llgbm.errors import ConfigError
from llgbm.fitting.lora_steps import LoRASteps, StepSettings, initial_lora
from llgbm.linears.frozen_linear import Storage
from llgbm.lora import LoRAWeights
from llgbm.packed.batch import Row
from llgbm.pretrained.find import BASE_0_5B
from training.adapters.teacher_folder import adapter_folder
from training.recipe.generator_base import shared_adapter_for
from training.runs.artefacts import read_manifest, relative_name
from training.runs.fan_out import open_workers
from training.runs.fingerprint import Fingerprint, flat
from training.runs.log import RunLog
from training.runs.workers import RayTask
from training.tasks.format import Task, load_tasks, tasks_digest

_CHOICE = ("workdir", "folder", "tasks", "device", "ray", "ray_task")
"""Settings that select the teachers and where they are trained. All others influence a teacher's weights."""
_LAST_STEPS = 10
"""Number of last steps whose mean loss is logged."""
_NUM_EXAMPLES = 16
"""Number of short training rows in prompts.json, for conditions made from examples."""


@dataclass(frozen=True)
class Config:
    """Settings of the teachers."""

    workdir: Path = Path("runs/teachers")
    """Folder of the adapters."""
    folder: Path = Path("tasks/train")
    """Folder of task files."""
    tasks: tuple[str, ...] = ()
    """Only these tasks; empty uses all in the folder."""
    base: str = BASE_0_5B
    """Hub id or folder of the frozen base."""
    base_storage: Storage = "float32"
    """How the base's Linear weights are stored during training; bfloat16 is faster on a processor that supports it."""
    device: str = "cpu"
    """A torch device, cpu or cuda; on cuda set base_storage to bfloat16 or float32."""
    start: Path | None = None
    """A generator artefact whose shared adapter every teacher starts from; none uses PEFT's initialisation."""
    lora_rank: int = 8
    """LoRA rank; the 0.5B preset has 8, the 1.5B preset 16. A start adapter must have the same rank."""
    lora_alpha: float = 16.0
    """LoRA alpha; the 0.5B preset has 16, the 1.5B preset 32. A start adapter must have the same alpha."""
    steps: int = 60
    """Optimiser steps for each teacher."""
    rows_per_step: int = 8
    """Rows per step."""
    max_row_tokens: int = 200
    """Maximum length of a row in tokens; longer rows are skipped."""
    learning_rate: float = 5e-4
    """Peak learning rate, after a linear warmup over a tenth of the steps; then it decays linearly to zero."""
    label_smoothing: float = 0.0
    """Label smoothing of the loss."""
    seed: int = 0
    """Random seed of initialisation and row order."""
    index: int = 0
    """Number of the teacher within its task, the `idx` of its folder."""
    ray: str | None = None
    """Ray cluster to train on: local, auto or an address, see `docs/SCALING.md`; none uses this process."""
    ray_task: RayTask = field(default_factory=RayTask)


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained teacher that is not saved yet.

    Attributes:
        losses: loss of every step, nats.
        seconds: training time.
    """

    weights: LoRAWeights
    losses: list[float]
    seconds: float


def run(config: Config) -> None:
    """Train every missing teacher."""
    tasks = load_tasks(config.folder, config.tasks or None)
    with RunLog(config.workdir, "teachers", config) as log:
        base = load_base(config.base, storage=config.base_storage, device=config.device)
        start = Start.of(config, base)
        present = [t for t in tasks if (adapter_folder(config.workdir, t.task_id, config.index) / CONFIG_FILE).exists()]
        for task in present:
            require_same_settings(config, task, base, start)
            list_teacher(config, task)
        missing = [t for t in tasks if t not in present]
        log.logger.info("teachers", wanted=len(tasks), missing=len(missing))
        if not missing:
            return
        with (
            open_workers(config.ray, config.ray_task, base, config.base, config.base_storage) as workers,
            log.progress("teachers", total=len(missing)) as progress,
        ):
            work = partial(_trained, config=config, start=start.weights)
            for done, (task, trained) in enumerate(workers.map(work, missing), 1):
                loss = _keep(log, base, task, config, trained, start)
                progress.update(done, f"{task.task_id}: loss {loss:.3f}")


def make_teacher(log: RunLog, base: Base, task: Task, config: Config) -> float:
    """Train a teacher, save it and list it in the index; returns the mean loss of its last steps, nats."""
    start = Start.of(config, base)
    return _keep(log, base, task, config, _trained(base, task, config, start.weights), start)


@dataclass(frozen=True, eq=False)
class Start:
    """The initial adapter of teachers.

    Attributes:
        weights: None for PEFT's initialisation.
        digest: digest of the weights; None without weights.
    """

    weights: LoRAWeights | None
    digest: str | None

    @staticmethod
    def of(config: Config, base: Base) -> Start:
        """Load the initial adapter.

        Raises:
            CheckpointError: the artefact cannot be read, or is for another base.
        """
        if config.start is None:
            return Start(None, None)
        weights = shared_adapter_for(config.start, base.spec.base_id)
        return Start(weights, content_digest(weights))


def _trained(base: Base, task: Task, config: Config, start: LoRAWeights | None) -> Trained:
    began = time.monotonic()
    weights, losses = train_teacher(base, task, config, start)
    return Trained(weights, losses, time.monotonic() - began)


def _keep(log: RunLog, base: Base, task: Task, config: Config, trained: Trained, start: Start) -> float:
    folder = adapter_folder(config.workdir, task.task_id, config.index)
    save_peft(trained.weights, folder, base_id=base.spec.base_id)
    loss = float(np.mean(trained.losses[-_LAST_STEPS:]))
    for step, value in enumerate(trained.losses):
        log.metrics(step=step, series=folder.name, loss=value)
    log.record_artefact(
        folder,
        kind="adapter",
        base_revision=base.revision,
        data_digest=tasks_digest([task]),
        seconds=trained.seconds,
        loss=loss,
        start_digest=start.digest,
    )
    list_teacher(config, task)
    return loss


def require_same_settings(config: Config, task: Task, base: Base, start: Start) -> None:
    """Check that an existing teacher was trained with these settings, start, rows and base weights.

    An adapter that was not trained here passes.

    Raises:
        ConfigError: something differs; the message names it.
    """
    folder = adapter_folder(config.workdir, task.task_id, config.index)
    artefact = read_manifest(config.workdir).get(relative_name(config.workdir, folder))
    if artefact is None or artefact.command != "teachers":
        return
    recorded = {name: value for name, value in flat(artefact.config).items() if name.partition(".")[0] not in _CHOICE}
    recorded["task_digest"], recorded["base_revision"] = artefact.data_digest, artefact.base_revision
    recorded["start_digest"] = artefact.details.get("start_digest")
    made_with = Fingerprint.of(
        config,
        without=_CHOICE,
        task_digest=tasks_digest([task]),
        base_revision=base.revision,
        start_digest=start.digest,
    )
    made_with.require_same(recorded, str(folder))


def list_teacher(config: Config, task: Task) -> AdapterEntry:
    """Add an existing teacher to the workdir's index, and write its prompts."""
    folder = adapter_folder(config.workdir, task.task_id, config.index)
    if not (folder / PROMPTS_FILE).exists():
        examples = sorted(task.train, key=lambda e: len(e.input) + len(e.output))[:_NUM_EXAMPLES]
        save_prompts(folder, AdapterPrompts(task.seen_descriptions, tuple((e.input, e.output) for e in examples)))
    entry = AdapterEntry(folder.name, task.task_id, folder)
    known = load_index(config.workdir)
    if not (config.workdir / INDEX_FILE).exists() or entry.adapter_id not in {e.adapter_id for e in known}:
        # sorted by id, because with several workers the order of completion varies
        save_index(config.workdir, sorted({e.adapter_id: e for e in [*known, entry]}.values(), key=_adapter_id))
    return entry


def _adapter_id(entry: AdapterEntry) -> str:
    return entry.adapter_id


def train_teacher(base: Base, task: Task, config: Config, start: LoRAWeights | None) -> tuple[LoRAWeights, list[float]]:
    """Train one teacher on the task's rows; the user turn contains only the input.

    Returns:
        The adapter, and the loss of every step in nats.

    Raises:
        ConfigError: no row is short enough, or the start has another rank or alpha than the configuration.
    """
    rows = _rows(base, task, config.max_row_tokens)
    rng = np.random.default_rng([config.seed, config.index])
    order = np.concatenate(
        [rng.permutation(len(rows)) for _ in range(1 + config.steps * config.rows_per_step // len(rows))]
    )
    settings = StepSettings(config.learning_rate, config.steps, label_smoothing=config.label_smoothing)
    steps = LoRASteps(base, _initial(base, config, start), settings)
    losses = []
    for step in range(config.steps):
        chosen = order[step * config.rows_per_step : (step + 1) * config.rows_per_step]
        losses.append(steps.step([[rows[i] for i in chosen]]))
    return steps.weights, losses


def _rows(base: Base, task: Task, max_row_tokens: int) -> list[Row]:
    tokenizer = base.tokenizer
    rows = [Row(prompt_ids(tokenizer, task_messages(e.input)), answer_ids(tokenizer, e.output)) for e in task.train]
    short = [row for row in rows if len(row.prompt) + len(row.answer) <= max_row_tokens]
    if not short:
        raise ConfigError(f"{task.task_id} has no row of at most {max_row_tokens} tokens; raise max_row_tokens")
    return short


def _initial(base: Base, config: Config, start: LoRAWeights | None) -> LoRAWeights:
    if start is None:
        return initial_lora(LoRASpec.for_model(base.spec, rank=config.lora_rank, alpha=config.lora_alpha), config.seed)
    if (start.spec.rank, start.spec.alpha) != (config.lora_rank, config.lora_alpha):
        raise ConfigError(
            f"the start adapter has rank {start.spec.rank} and alpha {start.spec.alpha}, "
            f"the configuration {config.lora_rank} and {config.lora_alpha}; make them equal"
        )
    return start
