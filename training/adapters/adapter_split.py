"""Splits adapters and their descriptions into training and evaluation sets.

By adapter: some tasks are held out with all their adapters. Each family keeps at least one task for training.
By description: some wordings of every adapter are never trained on. A wording used for evaluation appears in no
training condition, of any adapter.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from llgbm.adapters.index import AdapterEntry, AdapterPrompts
from llgbm.adapters.peft_io import content_digest, load_peft
from llgbm.dataset import RealAdapterDataset
from llgbm.errors import ConfigError
from training.tasks.format import UNSEEN_SHARE, Task, folded, load_tasks, unique_descriptions

UNKNOWN = "unknown"
"""Family of an adapter whose task has no file."""


@dataclass(frozen=True)
class AdapterSplit:
    """Training and held-out adapters.

    Attributes:
        train: adapters to train on; their prompts contain only seen descriptions.
        heldout: adapters that are never trained on.
        unseen: adapter id -> descriptions that are never trained on.
        families: adapter id -> family.
    """

    train: tuple[AdapterEntry, ...]
    heldout: tuple[AdapterEntry, ...]
    unseen: Mapping[str, tuple[str, ...]]
    families: Mapping[str, str]


def tasks_by_id(folder: Path | None) -> dict[str, Task]:
    """The task files of a folder by id; empty without a folder."""
    return {} if folder is None else {task.task_id: task for task in load_tasks(folder)}


def family_of(entry: AdapterEntry, tasks: Mapping[str, Task]) -> str:
    """The category of the adapter's task, or `UNKNOWN`."""
    return tasks[entry.task].category if entry.task in tasks else UNKNOWN


def split_adapters(
    entries: Sequence[AdapterEntry], tasks: Mapping[str, Task], *, heldout_share: float, seed: int
) -> AdapterSplit:
    """Split adapters by task and their descriptions by wording.

    Args:
        entries: adapters with their prompts.
        tasks: task files by id, for families and unseen descriptions. An adapter without a task file reserves the
            last quarter of its own descriptions for evaluation.
        heldout_share: fraction of the tasks whose adapters are held out, in [0, 1).
        seed: selects the held-out tasks.

    Raises:
        ConfigError: the share is out of range, no family can spare a task, or nothing is left to train on.
        TaskFormatError: an adapter has no prompts.
    """
    if not 0 <= heldout_share < 1:
        raise ConfigError(f"heldout_share must be at least 0 and below 1, not {heldout_share}")
    families = {entry.adapter_id: family_of(entry, tasks) for entry in entries}
    held = _held_out({entry.task: families[entry.adapter_id] for entry in entries}, heldout_share, seed)
    unseen = {entry.adapter_id: _kept_back(entry, tasks.get(entry.task)) for entry in entries}
    measured_with = {folded(text) for texts in unseen.values() for text in texts}
    seen = [_without(entry, measured_with) for entry in entries]
    return AdapterSplit(
        train=tuple(entry for entry in seen if entry.task not in held),
        heldout=tuple(entry for entry in seen if entry.task in held),
        unseen=unseen,
        families=families,
    )


def split_digest(split: AdapterSplit) -> str:
    """The first 16 hex digits of the sha256 of a split: the adapters of both sides, read now, and their prompts.

    Raises:
        AdapterFormatError: an adapter is damaged.
    """
    sides = [
        [
            (e.adapter_id, content_digest(load_peft(e.folder)[0]), asdict(e.read_prompts()), split.unseen[e.adapter_id])
            for e in side
        ]
        for side in (split.train, split.heldout)
    ]
    return hashlib.sha256(json.dumps(sides).encode()).hexdigest()[:16]


def adapters_digest(adapters: RealAdapterDataset) -> str:
    """The first 16 hex digits of the sha256 of adapters and their ids, read now.

    Raises:
        AdapterFormatError: an adapter is damaged.
    """
    found = [(e.adapter_id, content_digest(w)) for e, w in zip(adapters.entries, adapters, strict=True)]
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()[:16]


def _held_out(family: Mapping[str, str], share: float, seed: int) -> set[str]:
    """Tasks to hold out: at least one if the share is positive, never the last one of a family."""
    wanted = max(1, round(share * len(family))) if share else 0
    left: dict[str, int] = defaultdict(int)
    for name in family.values():
        left[name] += 1
    held: set[str] = set()
    names = sorted(family)
    for place in np.random.default_rng(seed).permutation(len(names)):
        task = names[place]
        if len(held) < wanted and left[family[task]] > 1:
            left[family[task]] -= 1
            held.add(task)
    if wanted and not held:
        raise ConfigError(
            "no family has two tasks, so none can be held out; train more teachers, or set heldout_share=0"
        )
    return held


def _kept_back(entry: AdapterEntry, task: Task | None) -> tuple[str, ...]:
    """The descriptions of an adapter that are reserved for evaluation."""
    if task is not None:
        return unique_descriptions(task.unseen_descriptions)
    listed = unique_descriptions(entry.read_prompts().descriptions)
    return listed[-max(1, len(listed) // UNSEEN_SHARE) :]


def _without(entry: AdapterEntry, measured_with: Collection[str]) -> AdapterEntry:
    """The entry without the descriptions that any adapter is evaluated with."""
    prompts = entry.read_prompts()
    seen = tuple(text for text in unique_descriptions(prompts.descriptions) if folded(text) not in measured_with)
    if not seen and not prompts.examples:
        raise ConfigError(
            f"{entry.folder}: all its descriptions are reserved for evaluation, so there is none to train on; "
            "add wordings or examples to its prompts.json"
        )
    return replace(entry, prompts=AdapterPrompts(seen, prompts.examples))
