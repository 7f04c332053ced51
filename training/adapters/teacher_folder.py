"""The layout of a working folder of teachers, and reading them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from llgbm.adapters.peft_io import content_digest, load_peft_for
from llgbm.lora import LoRAWeights


def adapter_folder(workdir: Path, task_id: str, index: int) -> Path:
    """The folder of teacher number `index` of a task."""
    return workdir / task_id / f"{task_id}_{index:03d}"


def load_teachers(workdir: Path, task_ids: Sequence[str], base_id: str) -> dict[str, LoRAWeights]:
    """The first teacher of each task that has one, by task id.

    Raises:
        AdapterFormatError: an adapter is damaged.
        AdapterMismatchError: an adapter is for another base.
    """
    folders = {t: adapter_folder(workdir, t, 0) for t in task_ids}
    return {t: load_peft_for(folder, base_id) for t, folder in folders.items() if folder.exists()}


def teachers_digest(teachers: Mapping[str, LoRAWeights]) -> str:
    """The first 16 hex digits of the sha256 of teachers by task id; their order does not matter."""
    found = sorted((task_id, content_digest(weights)) for task_id, weights in teachers.items())
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()[:16]
