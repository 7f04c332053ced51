"""Settings and data shared by the commands that match a generator to teachers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from llgbm.adapters.index import AdapterEntry, load_index
from llgbm.base import Base, load_base
from llgbm.config import GeneratorConfig, LoRASpec, default_lora
from llgbm.dataset import Conditioning, DeltaAugmentedDataset, RealAdapterDataset
from llgbm.delta import DeltaCache, DeltaMeter
from llgbm.linears.frozen_linear import Storage
from llgbm.lora import LoRAWeights
from llgbm.matching.delta_head import DeltaHeadConfig
from llgbm.matching.losses import WeightMode
from llgbm.packed.batch import TaskGroup, TrainingBatch
from llgbm.pretrained.find import BASE_0_5B, TEXT_ENCODER
from llgbm.prompting import TextEncoder, condition_of
from llgbm.text_encoder import PretrainedTextEncoder
from llgbm.training import TrainingConfig
from training.adapters.adapter_split import AdapterSplit, split_adapters, split_digest, tasks_by_id
from training.adapters.delta_store import ProbeConfig, cached_delta, fill_cache, open_deltas
from training.phases.match_measures import Case
from training.runs.log import RunLog
from training.tasks.format import Task


@dataclass(frozen=True)
class MatchSetup:
    """Settings that `match` and `ablate` share."""

    workdir: Path = Path("runs/teachers")
    """Folder of the teachers; also of states and results."""
    folder: Path | None = Path("tasks/train")
    """Folder of task files, for families and unseen descriptions; none uses only prompts.json."""
    deltas: str = "deltas"
    """Subfolder of the workdir with the teachers' deltas; missing deltas are measured."""
    base: str = BASE_0_5B
    """Hub id or folder of the frozen base."""
    base_storage: Storage = "float32"
    """How the base's Linear weights are stored; must be the same as for the teachers' deltas."""
    text_encoder: str = TEXT_ENCODER
    """Hub id or folder of the frozen text encoder."""
    probes: ProbeConfig = field(default_factory=ProbeConfig)
    heldout_share: float = 0.25
    """Fraction of the tasks whose teachers are held out."""
    split_seed: int = 0
    """Random seed that selects these tasks."""
    groups: int = 4
    """Teachers per step."""
    conditioning: Conditioning = field(default_factory=Conditioning)
    weight_mode: WeightMode = "product"
    """Weights that the weight loss compares: the products BA, or normalised tokens."""
    lambda_weight: float = 1.0
    """multitask: coefficient of the weight loss."""
    lambda_delta: float = 1.0
    """multitask: coefficient of the delta loss."""
    lambda_predicted: float = 1.0
    """guided: coefficient of the loss between predicted delta and teacher's delta."""
    lambda_computed: float = 1.0
    """guided: coefficient of the loss between computed delta and teacher's delta."""
    lambda_consistency: float = 1.0
    """guided: coefficient of the loss between predicted and computed delta, and of the head's error on teachers."""
    lambda_scale: float = 1.0
    """Coefficient of the relative squared error in every delta loss."""
    lambda_direction: float = 1.0
    """Coefficient of one minus the cosine in every delta loss."""
    head: DeltaHeadConfig = field(default_factory=DeltaHeadConfig)
    head_directions: int = 32
    """Number of backward passes that calibrate the delta head before a guided fit."""
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    generator_start: Literal["fresh", "teachers"] = "fresh"
    """Initialisation of the generator: fresh, or the mean of the training teachers with bases that span them. The
    latter needs teachers of the generator's rank and alpha that were trained from a common start."""
    evaluate_every: int = 0
    """Steps between measurements on held-out adapters; 0 measures only at the start and at the end."""
    wordings: int = 2
    """Number of unseen descriptions to measure for each adapter."""


@dataclass(frozen=True, eq=False)
class Material:
    """Models and data, loaded once for any number of fits.

    Attributes:
        split_digest: digest of `split`.
        lora: spec of the generated adapters.
        train: adapters to train on, with conditions drawn anew in every epoch.
        teachers: their weights, float32, in the same order.
        teacher_deltas: (n, probes, layers, hidden), in the same order.
        train_cases: the same adapters with unseen descriptions.
        heldout_cases: held-out adapters with unseen descriptions.
    """

    base: Base
    encoder: TextEncoder
    tasks: dict[str, Task]
    split: AdapterSplit
    split_digest: str
    lora: LoRASpec
    meter: DeltaMeter
    train: DeltaAugmentedDataset
    teachers: Sequence[LoRAWeights]
    teacher_deltas: Tensor
    train_cases: Sequence[Case]
    heldout_cases: Sequence[Case]

    def sampler(self, groups: int, seed: int, *, with_teachers: bool) -> AdapterSampler:
        """A sampler of batches of `groups` adapters, with their weights if `with_teachers`."""
        return AdapterSampler(self.train, self.teachers if with_teachers else None, self.teacher_deltas, groups, seed)


def read_split_digest(setup: MatchSetup) -> str:
    """The digest of the current split of the workdir's adapters; does not load the base.

    Raises:
        ConfigError, TaskFormatError, AdapterFormatError: see `split_adapters` and the readers.
    """
    return split_digest(_split(setup, load_index(setup.workdir), tasks_by_id(setup.folder)))


def load_material(setup: MatchSetup, log: RunLog) -> Material:
    """Load base, encoder and adapters, and measure missing deltas.

    Raises:
        CacheMismatchError: the deltas were measured with other probes, or another template, revision or storage.
        ConfigError, TaskFormatError, AdapterFormatError, AdapterMismatchError: see `split_adapters` and the readers.
    """
    tasks = tasks_by_id(setup.folder)
    base = load_base(setup.base, storage=setup.base_storage)
    encoder = PretrainedTextEncoder(setup.text_encoder)
    everything = RealAdapterDataset(setup.workdir, base_id=base.spec.base_id)
    split = _split(setup, everything.entries, tasks)
    meter, cache = open_deltas(setup.workdir / setup.deltas, base, setup.probes)
    fill_cache(log, everything, meter, cache)
    train = RealAdapterDataset(split.train, base_id=base.spec.base_id)
    dataset = DeltaAugmentedDataset(train, cache, encoder, conditioning=setup.conditioning, seed=setup.training.seed)
    teachers = list(train)
    train_cases = _cases(train, teachers, cache, split, encoder, setup.wordings)
    held = RealAdapterDataset(split.heldout, base_id=base.spec.base_id) if split.heldout else None
    return Material(
        base=base,
        encoder=encoder,
        tasks=tasks,
        split=split,
        split_digest=split_digest(split),
        lora=default_lora(base.spec),
        meter=meter,
        train=dataset,
        teachers=teachers,
        teacher_deltas=torch.stack([item.delta for item in dataset]),
        train_cases=train_cases,
        heldout_cases=_cases(held, list(held), cache, split, encoder, setup.wordings) if held else (),
    )


def _split(setup: MatchSetup, entries: Sequence[AdapterEntry], tasks: Mapping[str, Task]) -> AdapterSplit:
    return split_adapters(entries, tasks, heldout_share=setup.heldout_share, seed=setup.split_seed)


class AdapterSampler:
    """Batches for `llgbm.training.train`: every adapter once per epoch, each time with a newly drawn prompt.

    The batch of a step depends only on the seed, the dataset's seed and the step.
    """

    def __init__(
        self,
        dataset: DeltaAugmentedDataset,
        teachers: Sequence[LoRAWeights] | None,
        deltas: Tensor,
        groups: int,
        seed: int,
    ) -> None:
        self._dataset, self._teachers, self._deltas = dataset, teachers, deltas
        self._groups, self._seed = groups, seed

    def __call__(self, step: int) -> TrainingBatch:
        """The groups of step `step`."""
        return [self._group(step * self._groups + slot) for slot in range(self._groups)]

    def _group(self, number: int) -> TaskGroup:
        epoch, place = divmod(number, len(self._dataset))
        index = int(np.random.default_rng([self._seed, epoch]).permutation(len(self._dataset))[place])
        self._dataset.set_epoch(epoch)
        return TaskGroup(
            task_id=self._dataset.adapters.entries[index].adapter_id,
            condition=self._dataset.condition(index),
            teacher=None if self._teachers is None else self._teachers[index],
            delta=self._deltas[index],
        )


def _cases(
    adapters: RealAdapterDataset,
    teachers: Sequence[LoRAWeights],
    cache: DeltaCache,
    split: AdapterSplit,
    encoder: TextEncoder,
    wordings: int,
) -> list[Case]:
    cases = []
    for entry, weights in zip(adapters.entries, teachers, strict=True):
        delta = cached_delta(cache, entry.adapter_id, weights)
        chosen = split.unseen[entry.adapter_id][:wordings]
        for text, embedding in zip(chosen, encoder.encode(chosen), strict=True):
            condition = condition_of(embedding[None], embedding[None][:0])
            cases.append(Case(entry.adapter_id, entry.task, text, condition, weights, delta.values))
    return cases
