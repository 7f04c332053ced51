"""What the commands that match a generator to teachers share: their settings, and the material they work on."""

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
from llgbm.packing import TaskGroup, TrainingBatch
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
    """Folder of the teachers; states and results go there too."""
    folder: Path | None = Path("tasks/train")
    """Folder of task files, for families and descriptions never trained on; none: what prompts.json has."""
    deltas: str = "deltas"
    """Folder of the teachers' deltas in the workdir; what is missing is measured."""
    base: str = BASE_0_5B
    """Hub id or folder of the frozen base."""
    base_storage: Storage = "float32"
    """How the base's Linear weights are stored; teachers' deltas must have been measured with the same."""
    text_encoder: str = TEXT_ENCODER
    """Hub id or folder of the frozen text encoder."""
    probes: ProbeConfig = field(default_factory=ProbeConfig)
    heldout_share: float = 0.25
    """Share of the tasks whose teachers are never trained on."""
    split_seed: int = 0
    """Which tasks."""
    groups: int = 4
    """Teachers in a step."""
    conditioning: Conditioning = field(default_factory=Conditioning)
    weight_mode: WeightMode = "product"
    """What the weight loss compares: the products BA, or normalised tokens."""
    lambda_weight: float = 1.0
    """Weight of the weight loss in multitask."""
    lambda_delta: float = 1.0
    """Weight of the delta loss in multitask."""
    lambda_predicted: float = 1.0
    """Guided: weight of the predicted delta against the teacher's."""
    lambda_computed: float = 1.0
    """Guided: weight of the computed delta against the teacher's."""
    lambda_consistency: float = 1.0
    """Guided: weight of the predicted delta against the computed one, and of the head's error on teachers."""
    lambda_scale: float = 1.0
    """In every delta loss, the weight of the relative squared error."""
    lambda_direction: float = 1.0
    """In every delta loss, the weight of one minus the cosine."""
    head: DeltaHeadConfig = field(default_factory=DeltaHeadConfig)
    head_directions: int = 32
    """Backward passes that calibrate the delta head before a guided fit."""
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    generator_start: Literal["fresh", "teachers"] = "fresh"
    """Where the generator starts: at nothing, or at the mean of the training teachers with bases that span them; the
    latter needs teachers of the generator's own rank and alpha that were trained from one start."""
    evaluate_every: int = 0
    """Steps between two measurements on held-out adapters; 0 measures at the start and at the end."""
    wordings: int = 2
    """Unseen descriptions of each adapter that are measured."""


@dataclass(frozen=True, eq=False)
class Material:
    """Everything loaded once for any number of fits.

    Attributes:
        split_digest: of `split`.
        lora: spec of the adapters that the generator makes.
        train: adapters to train on, with conditions drawn anew in every epoch.
        teachers: their weights, float32, in the same order.
        teacher_deltas: (n, probes, layers, hidden), in the same order.
        train_cases: the same adapters asked for by descriptions that are never trained on.
        heldout_cases: adapters that are never trained on.
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
        """Batches of `groups` adapters, their weights with them if the loss needs those."""
        return AdapterSampler(self.train, self.teachers if with_teachers else None, self.teacher_deltas, groups, seed)


def read_split_digest(setup: MatchSetup) -> str:
    """The digest of how the adapters of the workdir are split now, without the base.

    Raises:
        ConfigError, TaskFormatError, AdapterFormatError: see `split_adapters` and the readers.
    """
    return split_digest(_split(setup, load_index(setup.workdir), tasks_by_id(setup.folder)))


def load_material(setup: MatchSetup, log: RunLog) -> Material:
    """Load base, encoder and adapters, and measure the deltas that are missing.

    Raises:
        CacheMismatchError: the deltas were measured on other probes, another template, revision or storage.
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
    """Batches for `llgbm.training.train` out of a dataset: every adapter once an epoch, under a prompt drawn anew.

    The batch of a step depends on the seed, the dataset's seed and the step alone.
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
