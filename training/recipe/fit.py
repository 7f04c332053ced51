"""`python -m training fit`: trains a generator on tasks and writes the artefact that the service loads.

The fit is resumable: its state is saved every few minutes, and the same command continues from it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog
import torch
from torch import Tensor

from llgbm.adapters.peft_io import content_digest
from llgbm.base import Base, load_base
from llgbm.checkpoint import (
    Checkpoint,
    GeneratorManifest,
    TrainingTask,
    load_generator,
    save_generator,
    saved_in,
)
from llgbm.conditioning.answer_words import WordScorer, scorer_digest
from llgbm.conditioning.encoder_lora import EncoderLoRA, lora_digest
from llgbm.config import GeneratorConfig, default_lora
from llgbm.delta import DeltaMeter
from llgbm.errors import ConfigError
from llgbm.fitting.context_teacher import Teacher
from llgbm.fitting.objectives import TaskObjective
from llgbm.generator import LoRAGenerator, create_generator
from llgbm.linears.frozen_linear import Storage
from llgbm.lora import LoRAWeights
from llgbm.measuring.probe_encoding import spread_layers
from llgbm.pretrained.find import BASE_0_5B, TEXT_ENCODER
from llgbm.prompting import AdapterMaker, TextEncoder
from llgbm.text_encoder import PretrainedTextEncoder, answer_words
from llgbm.training import TrainingConfig, TrainingState, train
from training.adapters.delta_store import ProbeConfig, cached_delta, open_deltas
from training.adapters.teacher_folder import adapter_folder, load_teachers, teachers_digest
from training.recipe.conditions import TEXTS_FILE, lasting_encoder
from training.recipe.generator_base import shared_adapter_for
from training.recipe.progress_check import CheckConfig, ProgressCheck
from training.recipe.sampler import SamplerConfig, TaskSampler
from training.recipe.start import (
    begin_word_rows,
    condition_map,
    encoder_lora_of,
    read_through,
    take_parameters,
    word_scorer_of,
)
from training.runs.fingerprint import RESUMABLE, Fingerprint
from training.runs.log import RunLog, set_up_logging
from training.runs.parallel import process_group
from training.runs.results import command_of
from training.tasks.format import Task, tasks_digest
from training.tasks.procedural_tasks import SYNTHETIC_CATEGORY
from training.tasks.training_set import TrainingSet, TrainingTasks, hidden_tasks

STATE_FILE = "state.pt"
_INDEXED_WORDINGS = 2


@dataclass(frozen=True)
class Config(TrainingTasks):
    """Settings of a fit."""

    workdir: Path = Path("runs/fit")
    """Folder of the state, the log and the artefact."""
    start: Path | None = None
    """A generator artefact to start from, with a new schedule and possibly other tasks; none starts from scratch."""
    base: str = BASE_0_5B
    """Hub id or folder of the frozen base."""
    base_storage: Storage = "float32"
    """How the base's Linear weights are stored during training; bfloat16 is faster on a processor that supports it."""
    device: str = "cpu"
    """A torch device, cpu or cuda; on cuda set base_storage to bfloat16 or float32."""
    text_encoder: str = TEXT_ENCODER
    """Hub id or folder of the frozen text encoder."""
    encoder_lora: Path | None = None
    """LoRA of the text encoder, a file of the command `encoder`; none keeps that of `start`, if it has one."""
    answer_words: Path | None = None
    """Scorer of answer words, a file of the command `words`; none keeps that of `start`, if it has one. Set
    `generator.answer_words` with it."""
    label_smoothing: float = 0.05
    """Label smoothing of the task loss."""
    distillation: float = 0.0
    """Weight of the KL divergence to a teacher's predictions in the task loss, 0 to 1."""
    context_teacher: Teacher = "shared"
    """The teacher: `shared` is the generator's shared adapter with the description in the context, `adapter` is the
    task's adapter in `teachers` without it."""
    context_teacher_from: Path | None = None
    """Artefact whose shared adapter is the frozen teacher; none uses the current shared adapter of the fit."""
    state_matching: float = 0.0
    """Weight of behavioural matching: the distance between the hidden states at the answer tokens and those of the
    teacher, which has the description in its context."""
    state_layers: int = 3
    """Number of layers whose states are matched, evenly spaced and ending with the last."""
    matching: float = 0.0
    """Weight of the delta loss in addition to the task loss, for tasks with a teacher in `teachers`; run the command
    `deltas` first."""
    probes: ProbeConfig = field(default_factory=ProbeConfig)
    deltas: str = "deltas"
    """Subfolder of `teachers` with the teachers' deltas."""
    teachers: Path | None = None
    """Folder of teachers for `context_teacher: adapter` and `matching`; tasks without a teacher have no KL and no delta
    loss."""
    recompute: bool = False
    """Activation checkpointing: less memory, but one more forward pass of each layer per step."""
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    check: CheckConfig = field(default_factory=CheckConfig)

    def __post_init__(self) -> None:
        if min(self.matching, self.state_matching) < 0 or self.state_layers < 1:
            raise ConfigError("matching and state_matching must not be negative, state_layers at least 1")
        if self.context_teacher_from and self.context_teacher != "shared":
            raise ConfigError("context_teacher_from is a shared adapter; set context_teacher to shared")
        if self.context_teacher == "adapter" and self.state_matching:
            raise ConfigError("state_matching needs a teacher that reads descriptions; set context_teacher to shared")
        wanted = self.context_teacher == "adapter" or self.matching > 0
        if wanted != (self.teachers is not None):
            raise ConfigError("context_teacher: adapter and matching go with teachers, the folder that has them")

    @property
    def artefact(self) -> Path:
        """Folder of the final generator."""
        return self.workdir / "generator"


def run(config: Config) -> None:
    """Train with checks, and write `{workdir}/generator/`; an existing equal artefact keeps its calibration.

    Raises:
        ConfigError: the working directory has the state of a run with other settings or tasks, or the artefact to
            start from has another base or size.
        CheckpointError: there is no readable artefact to start from, or its text encoder is another model.
        AdapterFormatError, AdapterMismatchError: `encoder_lora` is another file, or for another text encoder.
    """
    pools = config.training_set()
    kept_back = hidden_tasks(config.hidden_families, config.families)
    start = load_generator(config.start) if config.start else None
    lora = encoder_lora_of(config.encoder_lora, start)
    scorer = word_scorer_of(config.answer_words, start, lora)
    if config.generator.answer_words != (scorer is not None):
        raise ConfigError("generator.answer_words goes with answer_words, a file, or with a start that has one")
    with lasting_encoder(config.text_encoder, config.workdir / TEXTS_FILE, lora) as encoder:
        _fit(config, encoder, lora, scorer, pools, kept_back, start)


def _fit(
    config: Config,
    encoder: PretrainedTextEncoder,
    lora: EncoderLoRA | None,
    scorer: WordScorer | None,
    pools: TrainingSet,
    kept_back: Sequence[Task],
    started_from: Checkpoint | None,
) -> None:
    tasks = pools.own
    base = load_base(config.base, storage=config.base_storage, device=config.device)
    teachers = load_teachers(config.teachers, [t.task_id for t in tasks], base.spec.base_id) if config.teachers else {}
    meter, deltas = _teacher_deltas(config, base, teachers)
    if scorer is not None:
        scorer.require_sizes(config.generator.condition_size, base.spec.hidden_size)
    generator = create_generator(base.spec, default_lora(base.spec), config.generator, seed=config.training.seed)
    start = started_from.manifest if started_from else None
    state_path = config.workdir / STATE_FILE
    # a state has parameters of its own, and its fingerprint has the start and the LoRA
    if started_from is not None and not state_path.exists():
        _begin_with(generator, started_from, encoder, config, pools.all)
    words = answer_words(scorer, encoder, config.base)
    sampler = TaskSampler(
        tasks,
        base,
        encoder,
        config.sampler,
        batch_seed(config.training.seed, start),
        pools.synthetic,
        pools.relatives,
        with_context_rows=config.distillation > 0 or config.state_matching > 0,
        teachers=teachers if config.context_teacher == "adapter" else None,
        deltas=deltas,
        words=words,
    )
    generator.to(base.device)
    if words is not None and not state_path.exists() and not bool(generator.word_rows.any()):
        begin_word_rows(generator, base, sampler)
    objective = TaskObjective(
        base,
        label_smoothing=config.label_smoothing,
        distillation=config.distillation,
        context_teacher=_context_teacher(config, base),
        state_matching=config.state_matching,
        state_layers=spread_layers(base.spec, config.state_layers) if config.state_matching else (),
        matching=config.matching,
        meter=meter,
        recompute=config.recompute,
    )
    group = process_group()
    if group is not None and group.rank > 0:  # only the first process writes and checks
        train(generator, objective, sampler, config.training, state_path=state_path, group=group)
        group.close()
        return
    all_tasks = pools.all
    with RunLog(config.workdir, "fit", config) as log:
        made_with = fingerprint_of(config, all_tasks, base, start, teachers, lora, scorer)
        made_with.require_same_run(config.workdir, [STATE_FILE])
        check = ProgressCheck(config.check, tasks, base, encoder, words)
        hidden = ProgressCheck(config.check, kept_back, base, encoder, words, name="hidden")
        started, steps = time.monotonic(), 0
        with log.progress("fit", total=config.training.steps) as progress:

            def on_step(state: TrainingState) -> None:
                nonlocal steps
                steps = state.step + 1
                values = {"loss": state.loss, "lr": state.learning_rate, "grad_norm": state.grad_norm}
                log.metrics(step=state.step, series="", seconds=state.seconds, **values, **state.parts)
                progress.update(steps, f"loss {state.loss:.3f}")
                if check.due(steps, config.training.steps):
                    log.metrics(step=state.step, series="", **check.run(generator), **hidden.run(generator))

            first = train(
                generator, objective, sampler, config.training, state_path=state_path, on_step=on_step, group=group
            )
        generator.cpu()
        seconds = time.monotonic() - started
        made = {"steps": max(first, steps), "last_run_seconds": round(seconds)}
        manifest, prompts = manifest_of(config, generator, base, all_tasks, encoder, made, start=start)
        if saved_in(config.artefact, generator, manifest, encoder_lora=lora, word_scorer=scorer):
            log.logger.info("already made", artefact=str(config.artefact))
        else:
            manifest = save_generator(
                config.artefact, generator, manifest, prompts, encoder_lora=lora, word_scorer=scorer
            )
            log.record_artefact(
                config.artefact,
                base_revision=base.revision,
                data_digest=tasks_digest(all_tasks),
                digest=manifest.digest,
            )
    if group is not None:
        group.close()


def _begin_with(
    generator: LoRAGenerator, start: Checkpoint, encoder: PretrainedTextEncoder, config: Config, tasks: Sequence[Task]
) -> None:
    """Take the parameters of `start`. If its text encoder has another LoRA, the first layer reads through a map."""
    take_parameters(generator, start)
    with lasting_encoder(config.text_encoder, config.workdir / TEXTS_FILE, start.encoder_lora) as theirs:
        AdapterMaker(start, theirs, base=config.base).require_training_vectors()
        if theirs.lora_digest == encoder.lora_digest:
            return
        set_up_logging()
        logger = structlog.get_logger()
        logger.info("the start has another text encoder: fitting a map to its conditions", tasks=len(tasks))
        mapping = condition_map(tasks, encoder, theirs)
    read_through(generator, mapping)
    logger.info("the first layer reads through the map", r2=round(mapping.r2, 4))


def fingerprint_of(
    config: Config,
    tasks: Sequence[Task],
    base: Base,
    start: GeneratorManifest | None,
    teachers: Mapping[str, LoRAWeights],
    encoder_lora: EncoderLoRA | None,
    word_scorer: WordScorer | None,
) -> Fingerprint:
    """Everything that the state of a fit depends on."""
    teacher = _context_teacher(config, base)
    places = ("workdir", "device", "tasks", "families", "wordings", "task_ids", "base", "context_teacher_from")
    without = (*places, "encoder_lora", "answer_words", "check", "recompute", *RESUMABLE)
    return Fingerprint.of(
        config,
        without=without,
        tasks_digest=tasks_digest(tasks),
        base_revision=base.revision,
        start_digest=start and start.digest,
        encoder_lora_digest=lora_digest(encoder_lora),
        word_scorer_digest=scorer_digest(word_scorer),
        teachers_digest=teachers_digest(teachers) if teachers else None,
        context_teacher_digest=content_digest(teacher) if isinstance(teacher, LoRAWeights) else None,
    )


def _context_teacher(config: Config, base: Base) -> Teacher | LoRAWeights:
    """The configured teacher; an adapter if it is frozen."""
    if config.context_teacher_from is None:
        return config.context_teacher
    return shared_adapter_for(config.context_teacher_from, base.spec.base_id)


def _teacher_deltas(
    config: Config, base: Base, teachers: Mapping[str, LoRAWeights]
) -> tuple[DeltaMeter | None, dict[str, Tensor]]:
    """The meter and the deltas by task id, (probes, layers, hidden) each, for `matching`; otherwise None and empty."""
    if config.teachers is None or not config.matching:
        return None, {}
    meter, cache = open_deltas(config.teachers / config.deltas, base, config.probes)
    names = {task: adapter_folder(config.teachers, task, 0).name for task in teachers}
    return meter, {task: cached_delta(cache, names[task], weights).values for task, weights in teachers.items()}


def batch_seed(seed: int, start: GeneratorManifest | None) -> int:
    """The seed of the batches: another one for each start.

    With the same seed, a fit that goes on from an artefact would draw the batches that the artefact was trained on once
    more: the same tasks, wordings, rows and noise. Its loss would fall by what it remembers of them.
    """
    return seed if start is None else seed ^ int(start.digest, 16)


def manifest_of(
    config: Config,
    generator: LoRAGenerator,
    base: Base,
    tasks: Sequence[Task],
    encoder: TextEncoder,
    made: Mapping[str, Any],
    *,
    start: GeneratorManifest | None = None,
) -> tuple[GeneratorManifest, list[Tensor]]:
    """The manifest of a generator that was fitted with `config`, and the prompt embeddings of each task for the index.

    Args:
        encoder: of the prompt index. Of a procedural task and of a task of a family only the first wordings go into
            it, since there are many such tasks, and of any other task those of its file.
        made: further values of the manifest's `made_by`.
        start: manifest of the generator that the fit started from. Its other tasks are listed too, but not indexed,
            since the generator may have forgotten them.
    """
    trained = [TrainingTask(t.task_id, t.category, t.source, t.licence, t.seen_descriptions) for t in tasks]
    many = [t.family is not None or t.category.startswith(SYNTHETIC_CATEGORY) for t in tasks]
    own = [_INDEXED_WORDINGS if few else len(t.seen_in_file) for t, few in zip(tasks, many, strict=True)]
    indexed = [task.seen_descriptions[:count] for task, count in zip(tasks, own, strict=True)]
    embeddings = encoder.encode([text for texts in indexed for text in texts])
    blocks = list(embeddings.split([len(texts) for texts in indexed]))
    made_by = {"command": command_of("fit", config), "seed": config.training.seed, **made}
    if start is not None:
        earlier = [t for t in start.tasks if t.task_id not in {task.task_id for task in tasks}]
        trained += earlier
        blocks += [torch.zeros(0, generator.config.condition_size)] * len(earlier)
        made_by["started_from"] = {"digest": start.digest, "made_by": start.made_by}
    return GeneratorManifest(
        base_id=base.spec.base_id,
        base_revision=base.revision,
        encoder_id=config.text_encoder,
        model=base.spec,
        lora=generator.lora,
        generator=generator.config,
        tasks=tuple(trained),
        made_by=made_by,
    ), blocks
