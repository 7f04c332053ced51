"""`python -m training transfer`: would more tasks help? How far a new task's cores can be told from its description.

The command `cores` has found the best adapter of each task inside one pair of bases. Here some tasks are left out, and
a kernel ridge regression from description to cores, fitted on so many of the others, says theirs. It has no steps and
no initialisation, so what it falls short of is not for want of training: it shows what descriptions and tasks are
worth. Left out are tasks drawn at random, whose kind the others have, and whole categories. No pass of the base.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.kernel_ridge import KernelRidge
from sklearn.model_selection import GroupKFold, KFold

from llgbm.checkpoint import load_generator
from llgbm.core_loss import CoreMetric, CoreObjective
from llgbm.errors import ConfigError
from llgbm.text_encoder import PretrainedTextEncoder
from training.cores import cores_digest, load_cores
from training.pools import training_pools
from training.results import write_result
from training.runlog import RunLog
from training.tasks import Task, tasks_digest

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Config:
    """What is left out, and how the rest is fitted."""

    workdir: Path = Path("runs/transfer")
    """Folder of the log and the result."""
    cores: Path = Path("runs/cores")
    """Folder of the cores."""
    checkpoint: Path = Path("checkpoints/qwen2.5-0.5b")
    """The artefact whose cores they are."""
    tasks: Path = Path("tasks/train")
    """Folder of task files."""
    wordings: Path | None = None
    """File of more wordings of these tasks to fit on."""
    text_encoder: str = ""
    """Hub id or folder of the text encoder; by default the one that the checkpoint names."""
    counts: tuple[int, ...] = (25, 50, 100, 150)
    """Numbers of tasks to fit on."""
    folds: int = 5
    """Parts of the tasks that are left out in turn."""
    gamma: float = 2.0
    """Of the kernel exp(-gamma |x - y|^2) on normalised embeddings."""
    alpha: float = 1.0
    """Ridge."""
    seed: int = 0
    """Draws the parts, and the tasks to fit on."""

    def __post_init__(self) -> None:
        if self.folds < 2 or not self.counts or min(self.counts) < 2:
            raise ConfigError("there must be two folds at least, and counts of two tasks at least")


def run(config: Config) -> None:
    """Measure and write the result.

    Raises:
        ConfigError: there are not enough tasks with cores for the counts.
    """
    checkpoint = load_generator(config.checkpoint)
    tasks, _ = training_pools(config.tasks, (), wordings=config.wordings, num_synthetic=0, hidden_families=())
    cores = load_cores(config.cores, checkpoint, [task.task_id for task in tasks])
    tasks = [task for task in tasks if task.task_id in cores]
    if len(tasks) - -(-len(tasks) // config.folds) < max(config.counts):
        raise ConfigError(
            f"{config.cores} has the cores of {len(tasks)} tasks, too few to fit on {max(config.counts)} with one of "
            f"{config.folds} parts left out; run the command cores, or name smaller counts"
        )
    encoder = PretrainedTextEncoder(config.text_encoder or checkpoint.manifest.encoder_id)
    generator = checkpoint.generator
    norms = torch.stack([a @ a.T for a in generator.input_bases()])
    objective = CoreObjective(
        CoreMetric(generator, norms), {t.task_id: (cores[t.task_id].q, cores[t.task_id].p) for t in tasks}
    )
    with torch.no_grad():
        targets = objective.targets.flatten(1) / objective.targets.shape[1] ** 0.5
    products = (targets @ targets.T).double().numpy()
    texts = Texts.of(tasks, encoder)
    with RunLog(config.workdir, "transfer", config) as log:
        splits = {"tasks": _random_folds(config, tasks), "categories": _category_folds(config, tasks)}
        total, done = len(splits) * config.folds * len(config.counts), 0
        curves: dict[str, Any] = {}
        with log.progress("transfer", total=total) as progress:
            for name, folds in splits.items():
                found: dict[int, list[dict[str, float]]] = {count: [] for count in config.counts}
                for number, left_out in enumerate(folds):
                    rng = np.random.default_rng([config.seed, number])
                    others = rng.permutation(np.setdiff1d(np.arange(len(tasks)), left_out))
                    for count in config.counts:
                        if count <= len(others):
                            found[count].append(left_out_distances(texts, products, others[:count], left_out, config))
                        done += 1
                        progress.update(done, f"{name} left out, {count} tasks")
                curves[name] = {str(count): _means(parts) for count, parts in found.items() if parts}
        result = {
            "generator": checkpoint.manifest.digest,
            "cores": cores_digest(cores),
            "num_tasks": len(tasks),
            "distances": curves,
        }
        write_result(log, "transfer", config, result, data_digest=tasks_digest(tasks))


@dataclass(frozen=True, eq=False)
class Texts:
    """Embeddings (n, condition_size) of all wordings, the task of each, and whether it may be trained on."""

    embeddings: Array
    task: NDArray[np.int64]
    seen: NDArray[np.bool_]

    @classmethod
    def of(cls, tasks: Sequence[Task], encoder: PretrainedTextEncoder) -> Texts:
        """All wordings of all tasks."""
        listed = [
            (text, place, seen)
            for place, task in enumerate(tasks)
            for seen, texts in ((True, task.seen_descriptions), (False, task.unseen_descriptions))
            for text in texts
        ]
        embeddings = encoder.encode([text for text, _, _ in listed]).double().numpy()
        return cls(embeddings, np.array([p for _, p, _ in listed]), np.array([s for _, _, s in listed]))


def _random_folds(config: Config, tasks: Sequence[Task]) -> Iterator[NDArray[np.int64]]:
    split = KFold(config.folds, shuffle=True, random_state=config.seed)
    return (left_out for _, left_out in split.split(tasks))


def _category_folds(config: Config, tasks: Sequence[Task]) -> Iterator[NDArray[np.int64]]:
    categories = [task.category for task in tasks]
    return (left_out for _, left_out in GroupKFold(config.folds).split(tasks, groups=categories))


def left_out_distances(
    texts: Texts, products: Array, fitted: NDArray[np.int64], left_out: NDArray[np.int64], config: Config
) -> dict[str, float]:
    """Mean squared distances of what is said of the tasks left out: from their own cores, and from another's.

    What a regression says is a weighted sum of the fitted tasks' cores, so all distances follow from the inner
    `products` (tasks, tasks) of those.
    """
    on = np.isin(texts.task, fitted) & texts.seen
    mean = np.zeros(len(products))
    mean[fitted] = 1 / len(fitted)
    shares = np.eye(len(products))[texts.task[on]] - mean
    ridge = KernelRidge(alpha=config.alpha, kernel="rbf", gamma=config.gamma).fit(texts.embeddings[on], shares)
    asked = np.isin(texts.task, left_out) & ~texts.seen
    truth = texts.task[asked]
    said = ridge.predict(texts.embeddings[asked]) + mean
    others = truth[np.roll(np.arange(len(truth)), len(truth) // 2)]

    def distance(weights: Array, targets: NDArray[np.int64]) -> float:
        square = ((weights @ products) * weights).sum(1)
        cross = (weights @ products)[np.arange(len(targets)), targets]
        return float((square - 2 * cross + products.diagonal()[targets]).mean())

    return {
        "own": distance(said, truth),
        "another": distance(said, others),
        "mean_of_fitted": distance(np.tile(mean, (len(truth), 1)), truth),
    }


def _means(parts: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: round(float(np.mean([part[name] for part in parts])), 4) for name in parts[0]}
