"""`python -m training cores`: trains, for each task, the best adapter that the generator can represent.

A generator makes an adapter from two small cores for each module, within bases that all its adapters share. Here bases
and trunk are frozen, and only the cores are trained on the task's rows. They start at the generator's output for the
task's seen descriptions, or at other cores. The result measures the bases without the trunk, and is the target of
`python -m training amortise`. Resumable task by task.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from llgbm.base import Base, require_gradients
from llgbm.checkpoint import Checkpoint, load_generator
from llgbm.errors import CheckpointError, ConfigError
from llgbm.fitting.task_cores import TaskCoresAdam
from llgbm.fitting.task_losses import label_logits, row_means, sft_by_label
from llgbm.functional import FunctionalLoRA
from llgbm.generator import LoRAGenerator
from llgbm.linears.frozen_linear import Storage
from llgbm.lora import LoRAWeights
from llgbm.packing import Row, pack
from llgbm.prompting import TextEncoder
from training.recipe.conditions import TEXTS_FILE, lasting_encoder
from training.recipe.generator_base import base_of
from training.recipe.sampler import SamplerConfig, TaskSampler
from training.runs.artefacts import replace_tensors
from training.runs.fingerprint import Fingerprint
from training.runs.log import RunLog
from training.tasks.format import Task, load_tasks, tasks_digest

_WHERE = ("workdir", "tasks", "task_ids", "start", "base", "text_encoder", "side_by_side")
"""Settings that select the tasks, name paths or divide the work. All others influence the cores."""
_AVERAGED = 4
"""Number of steps over which the loss is averaged, for early stopping and for the log."""


@dataclass(frozen=True)
class CoreTraining:
    """Settings of training the cores of one task."""

    steps: int = 18
    """Maximum number of steps for each task."""
    learning_rate: float = 6e-3
    """Peak learning rate, after a linear warmup over a tenth of the steps; then it decays linearly to zero."""
    enough: float = 0.02
    """Early stopping: a task is done when the mean loss of its last steps is below this, in nats."""
    sampler: SamplerConfig = field(
        default_factory=lambda: SamplerConfig(groups=1, tokens_per_group=150, context_fraction=0.25, shared_fraction=0)
    )
    """Rows of a step, which has one group."""
    side_by_side: int = 4
    """Number of tasks per pass through the base. Affects time and memory, and the cores only by rounding."""
    seed: int = 0
    """Random seed of the rows."""

    def __post_init__(self) -> None:
        if self.sampler.groups != 1 or self.sampler.shared_fraction or self.sampler.warm_start_steps:
            raise ConfigError(
                "a step is one group of one task: set groups to 1, shared_fraction and warm_start_steps to 0"
            )
        if min(self.steps, self.side_by_side) < 1 or not 0 < self.learning_rate < math.inf:
            raise ConfigError("steps and side_by_side must be at least 1, and learning_rate positive")


@dataclass(frozen=True)
class Config(CoreTraining):
    """Settings of the command."""

    workdir: Path = Path("runs/cores")
    """Folder of the cores, one file for each task."""
    checkpoint: Path = Path("checkpoints/qwen2.5-0.5b")
    """The generator artefact."""
    tasks: Path = Path("tasks/train")
    """Folder of task files."""
    task_ids: tuple[str, ...] = ()
    """Only these tasks; empty uses all in the folder."""
    start: Path | None = None
    """Folder of cores to start from; none starts at the generator's output for a task's seen descriptions."""
    base: str = ""
    """Hub id or folder of the base; by default the checkpoint's."""
    base_storage: Storage = "float32"
    """How the base's Linear weights are stored."""
    text_encoder: str = ""
    """Hub id or folder of the text encoder; by default the checkpoint's."""


@dataclass(frozen=True, eq=False)
class Cores:
    """The cores of one adapter, of rank r within bases of rank R.

    Attributes:
        q: (modules, r, R) float32.
        p: (modules, R, r) float32, includes the gate.
    """

    q: Tensor
    p: Tensor

    def adapter(self, generator: LoRAGenerator) -> LoRAWeights:
        """The adapter of these cores within the bases of `generator`."""
        return generator.materialise(self.q[None], self.p[None])[0]


@torch.no_grad()
def generated_cores(generator: LoRAGenerator, descriptions: Tensor) -> Cores:
    """The mean of a generator's cores for descriptions (n, condition_size); the start of a task's training."""
    return Cores(*(side.mean(0) for side in generator.cores(descriptions)))


def run(config: Config, *, texts: Path | None = None) -> None:
    """Train the missing cores of every task.

    Args:
        config: settings of the command.
        texts: file of embeddings shared by several commands; by default a file in `workdir`.

    Raises:
        ConfigError: existing cores were made with other settings, a task has no cores to start from, or the base is
            stored in int8.
    """
    checkpoint = load_generator(config.checkpoint)
    tasks = load_tasks(config.tasks, config.task_ids or None)
    base = base_of(checkpoint, config.base, config.base_storage)
    starts = {} if config.start is None else load_cores(config.start, checkpoint, [task.task_id for task in tasks])
    if config.start is not None and len(starts) < len(tasks):
        raise ConfigError(
            f"{config.start} has cores of {len(starts)} of {len(tasks)} tasks; make the others there first"
        )
    made_with = {
        task.task_id: Fingerprint.of(
            config,
            without=_WHERE,
            generator=checkpoint.manifest.digest,
            base_revision=base.revision,
            task=tasks_digest([task]),
            start=cores_digest({task.task_id: starts[task.task_id]}) if task.task_id in starts else None,
        )
        for task in tasks
    }
    missing = []
    for task in tasks:
        path = core_file(config.workdir, task.task_id)
        if path.exists():
            made_with[task.task_id].require_same(json.loads(_metadata(path).get("made_with", "{}")), str(path))
        else:
            missing.append(task)
    encoder_id, texts = config.text_encoder or checkpoint.manifest.encoder_id, texts or config.workdir / TEXTS_FILE
    with (
        lasting_encoder(encoder_id, texts) as encoder,
        RunLog(config.workdir, "cores", config) as log,
        log.progress("cores", total=len(tasks)) as progress,
    ):
        started = time.monotonic()
        trained = train_cores(base, encoder, checkpoint.generator, missing, config, starts)
        for done, (task, cores, losses) in enumerate(trained, len(tasks) - len(missing) + 1):
            before, after = float(np.mean(losses[:_AVERAGED])), float(np.mean(losses[-_AVERAGED:]))
            numbers = {"steps": len(losses), "loss_before": before, "loss_after": after}
            said = {name: str(value) for name, value in numbers.items()}
            said["made_with"] = json.dumps(made_with[task.task_id].values)
            path = core_file(config.workdir, task.task_id)
            write_cores(path, cores, belonging(checkpoint) | said)
            log.record_artefact(
                path,
                kind="cores",
                base_revision=base.revision,
                data_digest=tasks_digest([task]),
                generator=checkpoint.manifest.digest,
            )
            log.metrics(step=done, series="", task=task.task_id, seconds=time.monotonic() - started, **numbers)
            progress.update(done, f"{task.task_id}: loss {before:.3f} to {after:.3f} in {len(losses)} steps")


def core_file(workdir: Path, task_id: str) -> Path:
    """The file of a task's cores."""
    return workdir / f"{task_id}.safetensors"


def train_cores(
    base: Base,
    encoder: TextEncoder,
    generator: LoRAGenerator,
    tasks: Sequence[Task],
    config: CoreTraining,
    starts: Mapping[str, Cores] | None = None,
) -> Iterator[tuple[Task, Cores, list[float]]]:
    """Train the cores of each task independently; the generator is frozen.

    `config.side_by_side` tasks share each pass through the base, which is cheaper than one pass per task. A finished
    task is replaced by the next. Gradients and optimisers are separate for each task.

    Args:
        starts: initial cores by task id; other tasks start at the generator's output for their descriptions.

    Yields:
        Each finished task, its cores, and the loss of every step in nats.

    Raises:
        ConfigError: the base is stored in int8, which passes no gradients.
    """
    require_gradients(base)
    functional = FunctionalLoRA(base.model)
    waiting = iter(tasks)
    active: list[_Descent] = []
    while True:
        for task in islice(waiting, config.side_by_side - len(active)):
            sampler = TaskSampler([task], base, encoder, config.sampler, config.seed, with_context_rows=False)
            start = (starts or {}).get(task.task_id) or generated_cores(generator, sampler.description_embeddings(0))
            active.append(_Descent(task, sampler, start))
        if not active:
            return
        groups = [descent.rows() for descent in active]
        batch = pack(groups)
        q, p = (torch.cat(sides) for sides in zip(*(descent.cores for descent in active), strict=True))
        logits = label_logits(base, functional, batch, generator.materialise(q, p))
        by_row = row_means(sft_by_label(logits, batch), batch).split([len(rows) for rows in groups])
        losses = torch.stack([loss.mean() for loss in by_row])  # (active tasks,)
        # the sum has the gradient of each task's own loss, since no core occurs in the loss of another task
        gradients = torch.autograd.grad(losses.sum(), [core for descent in active for core in descent.cores])
        for place, descent in enumerate(active):
            descent.step(float(losses[place].detach()), gradients[2 * place : 2 * place + 2], config)
        for descent in [descent for descent in active if descent.done]:
            active.remove(descent)
            yield descent.task, Cores(*(core.detach()[0] for core in descent.cores)), descent.losses


class _Descent:
    """The training of one task's cores."""

    def __init__(self, task: Task, sampler: TaskSampler, start: Cores) -> None:
        self.task, self._sampler = task, sampler
        self.cores = [nn.Parameter(side[None].clone()) for side in (start.q, start.p)]
        self._optimiser = TaskCoresAdam(self.cores)
        self.losses: list[float] = []
        self.done = False

    def rows(self) -> Sequence[Row]:
        """The rows of the next step."""
        return self._sampler(len(self.losses))[0].rows

    def step(self, loss: float, gradients: Sequence[Tensor], config: CoreTraining) -> None:
        """Update the cores, or stop if the loss is small enough."""
        step = len(self.losses)
        self.losses.append(loss)
        if len(self.losses) >= _AVERAGED and np.mean(self.losses[-_AVERAGED:]) < config.enough:
            self.done = True
            return
        for core, gradient in zip(self.cores, gradients, strict=True):
            core.grad = gradient
        nn.utils.clip_grad_norm_(self.cores, 1.0)
        rise, fall = 10 * (step + 1) / config.steps, (config.steps - step) / (0.9 * config.steps)
        (settings,) = self._optimiser.param_groups
        settings["lr"] = config.learning_rate * min(1.0, rise, fall)
        self._optimiser.step()
        self.done = len(self.losses) == config.steps


def write_cores(path: Path, cores: Cores, metadata: Mapping[str, str]) -> None:
    """Write the cores of a task; the metadata includes `belonging` of their generator."""
    replace_tensors(path, {"q": cores.q, "p": cores.p}, metadata)


def belonging(checkpoint: Checkpoint) -> dict[str, str]:
    """Metadata of cores about their generator: its digest, and the digest of its bases.

    Cores are only valid for the same bases. The trunk may differ.
    """
    return {"generator": checkpoint.manifest.digest, "bases": checkpoint.generator.bases_digest()}


def load_cores(workdir: Path, checkpoint: Checkpoint, task_ids: Sequence[str]) -> dict[str, Cores]:
    """The existing cores by task id.

    Raises:
        CheckpointError: a file is unreadable, or has cores for other bases.
    """
    found, bases = {}, belonging(checkpoint)["bases"]
    for task_id in task_ids:
        path = core_file(workdir, task_id)
        if not path.exists():
            continue
        said, cores = _read(path)
        if said.get("bases") != bases:
            raise CheckpointError(
                f"{path} has cores for other bases than those of this generator; make them again in another workdir"
            )
        found[task_id] = cores
    return found


def generators_of(workdir: Path) -> set[str]:
    """The digests of the generators that the cores in a folder belong to; empty without cores.

    Raises:
        CheckpointError: a file is unreadable.
    """
    return {_metadata(path).get("generator", "") for path in workdir.glob("*.safetensors")}


def cores_digest(cores: Mapping[str, Cores]) -> str:
    """The first 16 hex digits of the sha256 of cores by task id; their order does not matter."""
    digest = hashlib.sha256()
    for task_id in sorted(cores):
        digest.update(task_id.encode())
        for side in (cores[task_id].q, cores[task_id].p):
            digest.update(side.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _read(path: Path) -> tuple[dict[str, str], Cores]:
    with _opened(path) as file:
        return file.metadata() or {}, Cores(file.get_tensor("q"), file.get_tensor("p"))


def _metadata(path: Path) -> dict[str, str]:
    """The metadata of a file, without reading its cores."""
    with _opened(path) as file:
        return file.metadata() or {}


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, "pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} has no readable cores: {error}; delete it and make them again") from error
