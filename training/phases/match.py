"""`python -m training match`: fits a generator to teachers by their weights, their deltas, or both.

Losses: `weight` (no pass through the base), `delta` (computes the delta of every generated adapter at every step),
`multitask` (both), `guided` (a head predicts the deltas, and they are computed every N steps). Resumable. A finished
fit is only repeated if the teachers have changed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from llgbm.checkpoint import GeneratorManifest, TrainingTask, save_generator
from llgbm.generator import LoRAGenerator, create_generator
from llgbm.matching.delta_head import DeltaHead
from llgbm.matching.delta_objectives import DeltaGuidedObjective, DeltaObjective, WeightObjective
from llgbm.matching.head_calibration import calibrate_delta_head
from llgbm.matching.losses import DeltaGuidedLoss, DeltaOnlyLoss, MultiTaskLoss, WeightLoss
from llgbm.matching.teacher_basis import start_from_teachers
from llgbm.training import Objective, TrainingState, train
from training.adapters.adapter_split import UNKNOWN
from training.phases.match_measures import baselines, score_cases, summarise
from training.phases.match_setup import MatchSetup, Material, load_material, read_split_digest
from training.runs.fingerprint import Fingerprint
from training.runs.log import RunLog
from training.runs.metrics import read_metrics
from training.runs.results import FOLDER, command_of, read_result, write_result

Kind = Literal["weight", "delta", "multitask", "guided"]
PILOT_PASSES = 7
"""Passes that calibrating a head takes in addition to one per direction; see `llgbm.matching.head_calibration`."""


@dataclass(frozen=True)
class Config(MatchSetup):
    """Settings of one fit."""

    loss: Kind = "guided"
    """Loss of the fit."""
    every: int = 10
    """N of a guided fit: the deltas are computed at every N-th step."""
    name: str = ""
    """Name of the fit's files; by default the loss, N and the seed."""

    @property
    def title(self) -> str:
        """The given or the default name."""
        kind = f"guided-{self.every}" if self.loss == "guided" else self.loss
        return self.name or f"{kind}-s{self.training.seed}"

    @property
    def artefact(self) -> Path:
        """Folder of the fitted generator; the training state is in its parent folder."""
        return self.workdir / "match" / self.title / "generator"

    @property
    def result(self) -> Path:
        """The result file."""
        return self.workdir / FOLDER / f"match-{self.title}.json"


def run(config: Config) -> None:
    """Fit, measure, and write `{workdir}/results/match-{name}.json` and the generator's artefact."""
    with RunLog(config.workdir, "match", config) as log:
        if is_done(config, fingerprint_of(config, read_split_digest(config))):
            log.logger.info("already done", result=config.result.stem)
            return
        material = load_material(config, log)
        state = config.artefact.with_name(f"{fingerprint_of(config, material.split_digest).digest}.state.pt")
        generator, found = fit_arm(material, config, log, state)
        save_arm(config.artefact, generator, config, material)
        made_of: dict[str, Any] = {"base_revision": material.base.revision, "data_digest": material.split_digest}
        log.record_artefact(config.artefact, kind="generator", **made_of)
        write_result(log, config.result.stem, config, found, **made_of)
        state.unlink()  # the state's name contains the fingerprint, so states of other settings stay
        log.logger.info("result", **found["metrics"])


def fingerprint_of(config: Config, split: str) -> Fingerprint:
    """Fingerprint of the settings and, by the digest of their split, of the adapters."""
    return Fingerprint.of(config, split=split)


def is_done(config: Config, made_with: Fingerprint) -> bool:
    """Whether the result file exists and has this fingerprint."""
    return config.result.exists() and read_result(config.result).get("fingerprint") == made_with.digest


def fit_arm(material: Material, config: Config, log: RunLog, state_path: Path) -> tuple[LoRAGenerator, dict[str, Any]]:
    """One fit with its measurements.

    Returns:
        The generator, and the content of the result file: metrics, the curve, and the score of every case.
    """
    series = config.title
    generator = create_generator(material.base.spec, material.lora, config.generator, seed=config.training.seed)
    if config.generator_start == "teachers":
        start_from_teachers(generator, material.teachers, seed=config.training.seed)
    objective, calibration = _objective(material, config)
    sampler = material.sampler(config.groups, config.training.seed, with_teachers=config.loss != "delta")
    resumed = state_path.exists()
    on_step = _Recorder(material, config, log, series, generator)
    if not resumed:
        on_step.measure(0)
    with log.progress(series, total=config.training.steps) as progress:
        on_step.progress = progress.update
        train(generator, objective, sampler, config.training, state_path=state_path, on_step=on_step)
    steps = read_metrics(config.workdir / "metrics" / f"{log.command}.{series}.jsonl")
    scores = {
        "train": score_cases(generator, material.meter, material.train_cases),
        "heldout": score_cases(generator, material.meter, material.heldout_cases),
    }
    metrics = {key: value for group, found in scores.items() for key, value in summarise(found, group).items()}
    metrics |= baselines(material.train_cases, material.train_cases, "train")
    metrics |= baselines(material.heldout_cases, material.train_cases, "heldout")
    metrics |= {
        **_spent(steps, len(steps)),
        "calibration_passes": calibration["passes"],
        "calibration_seconds": calibration["seconds"],
        "final_loss": float(steps[-1]["loss"]),
    }
    curve = read_metrics(config.workdir / "metrics" / f"{log.command}.{series}-curve.jsonl")
    points = [{k: v for k, v in point.items() if k != "time"} | _spent(steps, point["step"]) for point in curve]
    return generator, {
        "fingerprint": fingerprint_of(config, material.split_digest).digest,
        "loss": config.loss,
        "every": config.every if config.loss == "guided" else None,
        "seed": config.training.seed,
        "metrics": metrics,
        "curve": points,
        "cases": {group: [asdict(score) for score in found] for group, found in scores.items()},
        "train_adapters": [e.adapter_id for e in material.split.train],
        "heldout_adapters": [e.adapter_id for e in material.split.heldout],
    }


def save_arm(folder: Path, generator: LoRAGenerator, config: Config, material: Material) -> GeneratorManifest:
    """Write the generator as an artefact for `compose` and the service."""
    listed, embeddings = [], []
    for entry in material.split.train:
        task = material.tasks.get(entry.task)
        seen = entry.read_prompts().descriptions
        category, source, licence = (task.category, task.source, task.licence) if task else (UNKNOWN, UNKNOWN, UNKNOWN)
        listed.append(TrainingTask(entry.task, category, source, licence, seen))
        embeddings.append(material.encoder.encode(seen))
    manifest = GeneratorManifest(
        base_id=material.base.spec.base_id,
        base_revision=material.base.revision,
        encoder_id=config.text_encoder,
        model=material.base.spec,
        lora=generator.lora,
        generator=generator.config,
        tasks=tuple(listed),
        made_by={"command": command_of("match", config), "steps": config.training.steps, "seed": config.training.seed},
    )
    return save_generator(folder, generator, manifest, embeddings)


def _spent(steps: Sequence[Mapping[str, Any]], done: int) -> dict[str, float]:
    """Cost of the first `done` steps: base forwards, wall time and processor time."""
    spent = steps[:done]
    return {name: float(sum(line[name] for line in spent)) for name in ("base_forwards", "seconds", "cpu_seconds")}


class _Recorder:
    """Callback after every step: writes the metrics and, every `evaluate_every` steps, a point of the curve."""

    def __init__(self, material: Material, config: Config, log: RunLog, series: str, generator: LoRAGenerator) -> None:
        self._material, self._config, self._log = material, config, log
        self._series, self._generator = series, generator
        self._cpu = time.process_time()
        self.progress: Callable[[int, str], None] = lambda done, note: None

    def __call__(self, state: TrainingState) -> None:
        own = {"loss": state.loss, "lr": state.learning_rate, "grad_norm": state.grad_norm, "seconds": state.seconds}
        values = state.parts | own | {"cpu_seconds": time.process_time() - self._cpu}
        self._log.metrics(step=state.step, series=self._series, **values)
        done, every, total = state.step + 1, self._config.evaluate_every, self._config.training.steps
        self.progress(done, f"loss {state.loss:.3f}")
        if done == total or (every and done % every == 0):
            self.measure(done)
        self._cpu = time.process_time()

    def measure(self, done: int) -> None:
        """Write a point of the curve: scores of the held-out adapters, or of the training ones if none are held out."""
        self._generator.eval()
        group = "heldout" if self._material.heldout_cases else "train"
        cases = self._material.heldout_cases or self._material.train_cases
        scores = summarise(score_cases(self._generator, self._material.meter, cases), group)
        self._log.metrics(step=done, series=f"{self._series}-curve", **scores)
        self._generator.train()
        self._cpu = time.process_time()


def _objective(material: Material, config: Config) -> tuple[Objective, dict[str, float]]:
    """The objective of the configured loss, and the cost of calibrating its head: passes and seconds."""
    weight_loss = WeightLoss(config.weight_mode, material.train.normalizer)
    delta_loss = DeltaOnlyLoss(config.lambda_scale, config.lambda_direction)
    if config.loss == "weight":
        return WeightObjective(weight_loss), {"passes": 0.0, "seconds": 0.0}
    if config.loss == "delta":
        return DeltaObjective(material.meter, delta_loss), {"passes": 0.0, "seconds": 0.0}
    if config.loss == "multitask":
        both = MultiTaskLoss(config.lambda_weight, config.lambda_delta, weight_loss, delta_loss)
        return DeltaObjective(material.meter, both), {"passes": 0.0, "seconds": 0.0}
    began = time.monotonic()
    layers = material.meter.measurement.layers
    head = DeltaHead(material.base.spec, material.lora, layers, config.head, seed=config.training.seed)
    calibrate_delta_head(
        head,
        material.base,
        config.probes.build(),
        material.teachers,
        material.teacher_deltas,
        directions=config.head_directions,
        seed=config.training.seed,
    )
    guided_loss = DeltaGuidedLoss(
        config.every, config.lambda_predicted, config.lambda_computed, config.lambda_consistency, delta_loss
    )
    objective = DeltaGuidedObjective(material.meter, head, guided_loss)
    return objective, {"passes": float(config.head_directions + PILOT_PASSES), "seconds": time.monotonic() - began}
