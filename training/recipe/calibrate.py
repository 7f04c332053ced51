"""`python -m training calibrate`: calibrates a generator's task detector, confidence and choice of context.

The detector recognises texts that ask for no task, and is fitted on prompts alone, see `training.recipe.task_detector`;
the adapters of such texts are scaled to nearly nothing. The confidence is fitted to accuracies near to and far from the
training data. The choice of context ranks the adapter alone, with the description in the context, and with
description and examples, each at its best scale. It is measured twice, for adapters of a description and for adapters
of a description and examples.
Near are training tasks with unseen wordings; far are tasks of the families that were hidden from the fit. Rows are
those that neither training nor `evaluate` uses. The held-out kinds of `evaluate` are not used.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from llgbm.base import Base
from llgbm.checkpoint import GeneratorManifest, load_generator, write_calibration
from llgbm.conditioning.context_choice import CONTEXTS, Context, ContextChoice, texts_in
from llgbm.errors import ConfigError
from llgbm.evaluation import score_rows
from llgbm.linears.frozen_linear import Storage
from llgbm.prompting import AdapterMaker, AdapterRequest
from training.recipe.confidence import Point, confidence_curve, reliability
from training.recipe.context_choice import ContextPoint, accuracy_table, ranked_bins
from training.recipe.generator_base import base_of
from training.recipe.task_detector import detector_quality, fit_detector, gibberish
from training.runs.log import RunLog
from training.runs.results import write_result
from training.tasks.families import load_families
from training.tasks.format import Example, Task, evenly, exact_match, load_tasks, tasks_digest
from training.tasks.rows import eval_row, short_examples
from training.tasks.training_set import hidden_tasks


@dataclass(frozen=True)
class Config:
    """Settings of a calibration."""

    workdir: Path = Path("runs/calibrate")
    """Folder of the log and the result."""
    checkpoint: Path = Path("checkpoints/qwen2.5-0.5b")
    """The generator artefact; detector, curve and scale are written into it."""
    tasks: Path | None = Path("tasks/train")
    """Folder of the training tasks; none uses only families."""
    task_ids: tuple[str, ...] = ()
    """Only these training tasks; empty uses all."""
    families: Path | None = None
    """Folder of the family files that the fit used."""
    family_tasks: int = 150
    """Number of tasks of trained families, evenly spaced."""
    hidden_families: tuple[str, ...] = ()
    """Families, of files or procedural, that were hidden from the fit."""
    hidden_tasks: int = 80
    """Maximum number of procedural tasks of these families, taken from them in turn."""
    wordings: int = 2
    """Number of unseen wordings per task."""
    num_rows: int = 8
    """Test rows per task."""
    skip_rows: int = 50
    """Number of first test rows to reserve for `evaluate`; not for tasks of families, which have too few test rows."""
    threshold: float = 0.25
    """Confidence below which the service warns."""
    context_tasks: int = 60
    """Number of training tasks, and of other tasks, for the choice of context."""
    context_scales: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    """Candidate scales of an adapter with texts in the context; 0 is the base."""
    context_bins: int = 3
    """Maximum number of bins by distance from the training prompts; fewer if their choices generalise better."""
    num_examples: int = 3
    """Number of examples, short rows of the task's training."""
    base: str = ""
    """Hub id or folder of the base; by default the checkpoint's."""
    base_storage: Storage = "float32"
    """How the base's Linear weights are stored."""
    text_encoder: str = ""
    """Hub id or folder of the text encoder; by default the checkpoint's."""

    def __post_init__(self) -> None:
        counts = (self.wordings, self.num_rows, self.hidden_tasks, self.context_tasks, self.context_bins)
        if min(*counts, self.num_examples) < 1 or self.skip_rows < 0:
            raise ConfigError(
                "wordings, num_rows, hidden_tasks, context_tasks, context_bins and num_examples must be at least 1, "
                "and skip_rows not negative"
            )
        if not self.context_scales or not all(0 <= scale <= 1 for scale in self.context_scales):
            raise ConfigError("context_scales must have at least one value, all from 0 to 1")
        if not 0 <= self.threshold <= 1:
            raise ConfigError("threshold must be between 0 and 1")


def run(config: Config) -> None:
    """Fit the detector, measure, and write the calibration into the artefact.

    Raises:
        ConfigError: a hidden task was trained on, or there are too few tasks to measure.
    """
    checkpoint = load_generator(config.checkpoint)
    near = load_tasks(config.tasks, config.task_ids or None) if config.tasks else []
    if config.families:
        near += evenly(exact_match(load_families(config.families, without=config.hidden_families)), config.family_tasks)
    far = hidden_tasks(config.hidden_families, config.families, config.hidden_tasks)
    trained = {task.task_id for task in checkpoint.manifest.tasks}
    if known := [task.task_id for task in far if task.task_id in trained]:
        raise ConfigError(f"{config.checkpoint} was trained on {known[0]}; name families that its fit kept back")
    base = base_of(checkpoint, config.base, config.base_storage)
    encoder = checkpoint.text_encoder(config.text_encoder)
    detector = fit_detector(checkpoint, encoder)
    maker = AdapterMaker(replace(checkpoint, detector=detector), encoder, base=config.base)
    wordings = never_seen([*near, *far], checkpoint.manifest)
    tasks = [task for task in exact_match([*near, *far]) if _rows(task, config) and wordings[task.task_id]]
    sides = [[task for task in tasks if (task.task_id in trained) == known] for known in (True, False)]
    measured_on = [task for side in sides for task in evenly(side, config.context_tasks)]
    with RunLog(config.workdir, "calibrate", config) as log:
        points: list[Point] = []
        with log.progress("calibrate", total=len(tasks)) as progress:
            for done, task in enumerate(tasks, 1):
                points += measured(task, wordings[task.task_id], maker, base, config)
                progress.update(done, task.task_id)
        curve, found = confidence_curve(points, config.threshold), reliability(points)
        expected = np.interp([p.similarity for p in points], curve["similarity"], curve["confidence"])
        kinds: dict[str, list[ContextPoint]] = {"without_examples": [], "with_examples": []}
        with log.progress("choice of context", total=len(measured_on)) as progress:
            for done, task in enumerate(measured_on, 1):
                for name, shots in (("without_examples", 0), ("with_examples", config.num_examples)):
                    examples = short_examples(task, shots, seed=0)
                    if len(examples) == shots:
                        wording, is_known = wordings[task.task_id][0], task.task_id in trained
                        kinds[name].append(measured_in_context(task, wording, examples, is_known, maker, base, config))
                progress.update(done, task.task_id)
        choice = ContextChoice(**{name: ranked_bins(found, config.context_bins) for name, found in kinds.items()})
        manifest = write_calibration(config.checkpoint, detector, curve, choice)
        result = {
            "generator": manifest.digest,
            "detector": detector_quality(detector, detected(near, far), encoder),
            "curve": curve,
            "reliability": found,
            "context_choice": asdict(choice),
            "accuracy_in_context": {
                name: accuracy_table(measures, getattr(choice, name)) for name, measures in kinds.items()
            },
            "warned": round(float((expected < config.threshold).mean()), 4),
            "points_in_context": {
                name: [[p.trained, round(p.similarity, 4), *p.accuracy.values()] for p in measures]
                for name, measures in kinds.items()
            },
            "points": [[p.category, round(p.similarity, 4), round(p.accuracy, 4)] for p in points],
        }
        write_result(log, "confidence", config, result, base_revision=base.revision, data_digest=tasks_digest(tasks))


def detected(near: Sequence[Task], far: Sequence[Task]) -> dict[str, Sequence[str]]:
    """The texts on which the detector is measured; it was not fitted on any of them."""
    rng = random.Random(1)
    groups = {
        "training tasks, unseen wordings": [text for task in near for text in task.unseen_descriptions],
        "kinds kept back": [text for task in far for text in task.descriptions],
        "gibberish": [gibberish(rng) for _ in range(300)],
    }
    return {name: texts for name, texts in groups.items() if texts}


def never_seen(tasks: Sequence[Task], manifest: GeneratorManifest) -> dict[str, list[str]]:
    """Task id -> the held-back wordings of the task that the generator was not trained on for any task."""
    seen = {text for trained in manifest.tasks for text in trained.descriptions}
    return {task.task_id: [text for text in task.unseen_descriptions if text not in seen] for task in tasks}


def measured(task: Task, unseen: Sequence[str], maker: AdapterMaker, base: Base, config: Config) -> Iterator[Point]:
    """The points of one task: one for each of its first unseen wordings, all measured on the same rows."""
    wordings = unseen[: config.wordings]
    made = maker.make([AdapterRequest((text,)) for text in wordings])
    rows = [eval_row(base, example) for example in _rows(task, config)]
    for adapter, scores in zip(made, score_rows(base, [(a.weights, rows) for a in made]), strict=True):
        yield Point(task.category, adapter.nearest[0][1], float(np.mean([s.correct for s in scores])))


def measured_in_context(
    task: Task,
    wording: str,
    examples: Sequence[Example],
    trained: bool,
    maker: AdapterMaker,
    base: Base,
    config: Config,
) -> ContextPoint:
    """The point of one task: the adapter of an unseen wording and of examples, in every context at every scale.

    The adapter alone is measured at scale 1 only, since nothing else tells the base the task.
    """
    pairs = tuple((example.input, example.output) for example in examples)
    (made,) = maker.make([AdapterRequest((wording,), pairs)])
    accuracy: dict[tuple[Context, float], float] = {}
    for context in CONTEXTS if examples else CONTEXTS[:2]:
        description, shown = texts_in(context, wording, tuple(examples))
        rows = [eval_row(base, example, description=description, shots=shown) for example in _rows(task, config)]
        scales = (1.0,) if context == "none" else config.context_scales
        scores = score_rows(base, [(made.weights.scaled(scale) if scale else None, rows) for scale in scales])
        for scale, found in zip(scales, scores, strict=True):
            accuracy[context, scale] = float(np.mean([s.correct for s in found]))
    return ContextPoint(trained, made.nearest[0][1], accuracy)


def _rows(task: Task, config: Config) -> Sequence[Example]:
    """The test rows of a task to measure."""
    return task.test[0 if task.family else config.skip_rows :][: config.num_rows]
