"""`python -m training transfer`: would more tasks help? How far a new task's cores can be told from its description.

The command `cores` has found the best adapter of each task inside one pair of bases. Here some tasks are left out, and
a kernel ridge regression from description to cores, fitted on so many of the others, says theirs. It has no steps and
no initialisation, so what it falls short of is not for want of training: it shows what descriptions and tasks are
worth. Left out are tasks drawn at random, whose kind the others have, and whole categories.

What is left may be due to the tasks or to the embedding. So there is also the best mixture of the others' cores, found
by looking at the cores that are asked for: no description can do better with these tasks. And with all tasks the same
regression from the base's own hidden states on a description, in place of the text encoder's embedding and beside it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.kernel_ridge import KernelRidge
from sklearn.model_selection import GroupKFold, KFold
from sklearn.preprocessing import normalize
from torch import Tensor

from llgbm.base import Base
from llgbm.checkpoint import load_generator
from llgbm.core_loss import CoreMetric, CoreObjective
from llgbm.delta import keep_states
from llgbm.errors import ConfigError
from llgbm.frozen_linear import Storage
from llgbm.generator import LoRAGenerator
from llgbm.packing import Row, pack, packed_hidden_states
from llgbm.probe_encoding import resolve_layers
from llgbm.text_encoder import PretrainedTextEncoder
from training.cores import Cores, cores_digest, load_cores
from training.generator_base import base_of
from training.pools import training_pools
from training.results import write_result
from training.runlog import Progress, RunLog
from training.tasks import Task, tasks_digest

Array = NDArray[np.float64]
_TEXTS_OF_A_PASS = 64


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
    base: str = ""
    """Hub id or folder of the base; by default the one that the checkpoint names."""
    base_storage: Storage = "float32"
    """How the base's Linear weights are stored."""
    base_layer: int = 17
    """Decoder layer whose hidden states are the base's embedding of a description; -1 is the last."""
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
        ConfigError: there are not enough tasks with cores for the counts, or the base has no such layer.
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
    base = base_of(checkpoint, config.base, config.base_storage)
    (layer,) = resolve_layers(base.spec, [config.base_layer])
    encoder = PretrainedTextEncoder(config.text_encoder or checkpoint.manifest.encoder_id)
    products = inner_products(checkpoint.generator, [cores[task.task_id] for task in tasks])
    texts = Texts.of(tasks, encoder)
    with RunLog(config.workdir, "transfer", config) as log:
        with log.progress("hidden states", total=len(texts.texts)) as progress:
            by_embedding = texts.by_embedding(mean_states(base, texts.texts, layer, progress))
        folds = [*_random_folds(config, tasks), *_category_folds(config, tasks)]
        curves: dict[str, Any] = defaultdict(lambda: defaultdict(list))
        embeddings: dict[str, Any] = defaultdict(lambda: defaultdict(list))
        with log.progress("transfer", total=len(folds)) as progress:
            for done, (split, left_out) in enumerate(folds):
                rng = np.random.default_rng([config.seed, done % config.folds])
                others = rng.permutation(np.setdiff1d(np.arange(len(tasks)), left_out))
                for count in config.counts:
                    if count <= len(others):
                        fitted = others[:count]
                        distances = left_out_distances(texts, products, fitted, left_out, config)
                        best = mixture_distance(products, fitted, left_out)
                        curves[split][str(count)].append(distances | {"best_mixture": best})
                for kind, embedded in by_embedding.items():
                    embeddings[split][kind].append(left_out_distances(embedded, products, others, left_out, config))
                progress.update(done + 1, f"{split} left out")
        result = {
            "generator": checkpoint.manifest.digest,
            "cores": cores_digest(cores),
            "num_tasks": len(tasks),
            "distances": _means(curves),
            "embeddings": _means(embeddings),
        }
        write_result(log, "transfer", config, result, data_digest=tasks_digest(tasks), base_revision=base.revision)


@torch.no_grad()
def inner_products(generator: LoRAGenerator, cores: Sequence[Cores]) -> Array:
    """(n, n) of the adapters that cores make; 1 is the mean square of their distance from their mean."""
    norms = torch.stack([a @ a.T for a in generator.input_bases()])
    sides = {str(place): (found.q, found.p) for place, found in enumerate(cores)}
    targets = CoreObjective(CoreMetric(generator, norms), sides).targets
    flat = targets.flatten(1) / targets.shape[1] ** 0.5
    products: Array = (flat @ flat.T).double().numpy()
    return products


@dataclass(frozen=True, eq=False)
class Texts:
    """All wordings, the embedding (n, dim) of each, its task, and whether it may be trained on."""

    texts: tuple[str, ...]
    embeddings: Array
    task: NDArray[np.int64]
    seen: NDArray[np.bool_]

    @classmethod
    def of(cls, tasks: Sequence[Task], encoder: PretrainedTextEncoder) -> Texts:
        """All wordings of all tasks, as a text encoder sees them."""
        listed = [
            (text, place, seen)
            for place, task in enumerate(tasks)
            for seen, texts in ((True, task.seen_descriptions), (False, task.unseen_descriptions))
            for text in texts
        ]
        texts = tuple(text for text, _, _ in listed)
        embeddings: Array = encoder.encode(texts).double().numpy()
        return cls(texts, embeddings, np.array([p for _, p, _ in listed]), np.array([s for _, _, s in listed]))

    def by_embedding(self, states: Array) -> dict[str, Texts]:
        """The same by what they are embedded with: as they are, by hidden `states` (n, hidden), and by both.

        States are embedded by their direction from the mean of those that may be trained on; both count alike.
        """
        by_base = normalize(states - states[self.seen].mean(0))
        both = np.concatenate((self.embeddings, by_base), axis=1) / 2**0.5
        return {
            "text encoder": self,
            "base": replace(self, embeddings=by_base),
            "text encoder and base": replace(self, embeddings=both),
        }


@torch.no_grad()
def mean_states(base: Base, texts: Sequence[str], layer: int, progress: Progress) -> Array:
    """(n, hidden): the mean over a text's tokens of what decoder layer `layer` puts out.

    Without the first token, which is the same for all and whose state outweighs all others (2309.17453).
    """
    means: list[Tensor] = []
    for start in range(0, len(texts), _TEXTS_OF_A_PASS):
        ids = [base.tokenizer(f"Task: {text}").input_ids for text in texts[start : start + _TEXTS_OF_A_PASS]]
        batch = pack([[Row(one)] for one in ids])
        with keep_states(base.model, (layer,), torch.arange(batch.num_tokens)) as kept:
            packed_hidden_states(base.model, batch)
        means += [states[1:].mean(0) for states in kept[layer].double().split(batch.lengths)]
        progress.update(len(means))
    return torch.stack(means).numpy()


def _random_folds(config: Config, tasks: Sequence[Task]) -> Iterator[tuple[str, NDArray[np.int64]]]:
    split = KFold(config.folds, shuffle=True, random_state=config.seed)
    return (("tasks", left_out) for _, left_out in split.split(tasks))


def _category_folds(config: Config, tasks: Sequence[Task]) -> Iterator[tuple[str, NDArray[np.int64]]]:
    categories = [task.category for task in tasks]
    return (("categories", left_out) for _, left_out in GroupKFold(config.folds).split(tasks, groups=categories))


def left_out_distances(
    texts: Texts, products: Array, fitted: NDArray[np.int64], left_out: NDArray[np.int64], config: Config
) -> dict[str, float]:
    """Mean squared distances of what is said of the tasks left out: from their own cores, and from another's.

    A task counts once, with the mean over its unseen wordings, as it does in `mixture_distance`. What a regression says
    is a weighted sum of the fitted tasks' cores, so all distances follow from the inner `products` (tasks, tasks) of
    those.
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
        each = square - 2 * cross + products.diagonal()[targets]
        return float(np.mean([each[truth == task].mean() for task in np.unique(truth)]))

    return {
        "own": distance(said, truth),
        "another": distance(said, others),
        "mean_of_fitted": distance(np.tile(mean, (len(truth), 1)), truth),
    }


def mixture_distance(products: Array, fitted: NDArray[np.int64], left_out: NDArray[np.int64]) -> float:
    """Mean squared distance of the cores left out from the nearest mixture of the fitted tasks' cores.

    A mixture's weights may be negative, and their sum is one.
    """
    differences = np.eye(len(products))[fitted[1:]] - np.eye(len(products))[fitted[0]]
    gram = differences @ products @ differences.T
    asked = np.eye(len(products))[left_out] - np.eye(len(products))[fitted[0]]
    cross = differences @ products @ asked.T
    weights = np.linalg.lstsq(gram, cross, rcond=None)[0]
    return float((((asked @ products) * asked).sum(1) - (cross * weights).sum(0)).mean())


def _means(curves: Mapping[str, Mapping[str, Sequence[Mapping[str, float]]]]) -> dict[str, dict[str, Any]]:
    """Means over folds, by split and by what is compared."""
    return {
        split: {
            kind: {name: round(float(np.mean([part[name] for part in parts])), 4) for name in parts[0]}
            for kind, parts in curve.items()
        }
        for split, curve in curves.items()
    }
