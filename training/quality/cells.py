"""Cells of the quality table: the score of one method on one task, its key, and its measurement.

Finished cells are kept in a file, one JSON line each, so that a stopped evaluation resumes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llgbm.adapters.peft_io import content_digest
from llgbm.base import Base, numerics_of
from llgbm.decoding.decoder import generate
from llgbm.decoding.sampling import SamplingParams
from llgbm.evaluation import score_rows
from llgbm.lora import LoRAWeights
from training.quality.methods import MethodSetup
from training.runs.artefacts import replace_text
from training.runs.fingerprint import Fingerprint
from training.tasks.format import Task
from training.tasks.rows import eval_row


class Cells:
    """Cells by key. The key depends on everything that decides a cell: base, rows, adapter and context.

    Each cell is therefore measured once: another generator reuses the cells of the plain base.

    Args:
        path: the file; created with the first cell. A line that was cut off by a crash is dropped.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._cells: dict[str, dict[str, Any]] = {}
        if not path.exists():
            return
        text = path.read_text("utf-8")
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            replace_text(path, whole)
        for line in whole.splitlines():
            cell = json.loads(line)
            self._cells[cell["key"]] = cell

    def get(self, key: str) -> dict[str, Any] | None:
        """The cell, or None if it is not measured yet."""
        return self._cells.get(key)

    def __getitem__(self, key: str) -> dict[str, Any]:
        """A cell that is measured."""
        return self._cells[key]

    def add(self, key: str, cell: Mapping[str, Any]) -> dict[str, Any]:
        """Save a cell; returns it as `get` will."""
        full = {"key": key, **cell}
        self._cells[key] = full
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(full) + "\n")
        return full


SHOWN = "generated"
"""The method whose first failure on each task is recorded."""
_MAX_TOKENS = 32


def first_failure(base: Base, task: Task, adapter: LoRAWeights | None, correct: Sequence[int]) -> dict[str, str]:
    """Input, expected and given answer of the first wrongly answered test row, with only the input in the context.

    Args:
        correct: for each of the first test rows, 1 if the answer is right; at least one must be 0.
    """
    row = task.test[list(correct).index(0)]
    (answer,) = generate(base, [eval_row(base, row).prompt], adapter, SamplingParams(max_tokens=_MAX_TOKENS))
    text = str(base.tokenizer.decode(answer, skip_special_tokens=True))
    return {"input": row.input, "expected": row.output, "answer": text}


def measured_cell(base: Base, work: Work, num_rows: int) -> dict[str, Any]:
    """Score the rows of a cell; the method `SHOWN` also records its first wrong answer."""
    task, setup = work.task, work.setup
    began = time.monotonic()
    rows = [eval_row(base, e, description=setup.description, shots=setup.shots) for e in task.test[:num_rows]]
    scores = score_rows(base, [(setup.adapter, rows)])[0]
    cell: dict[str, Any] = {
        "correct": [int(s.correct) for s in scores],
        "log_likelihood": [round(s.log_likelihood, 4) for s in scores],
        "seconds": round(time.monotonic() - began, 2),
    }
    if work.method == SHOWN and not all(cell["correct"]):
        cell["failure"] = first_failure(base, task, setup.adapter, cell["correct"])
    return cell


@dataclass(frozen=True, eq=False)
class Work:
    """A cell to measure."""

    key: str
    method: str
    task: Task
    setup: MethodSetup


def cell_key(base: Base, task: Task, num_rows: int, setup: MethodSetup) -> str:
    """Digest of everything that decides a cell."""
    return Fingerprint.of(
        base_revision=base.revision,
        base_storage=numerics_of(base),
        rows=[(e.input, e.accepted) for e in task.test[:num_rows]],
        adapter=None if setup.adapter is None else content_digest(setup.adapter),
        description=setup.description,
        shots=[(e.input, e.output) for e in setup.shots],
    ).digest


def mean_cell(cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Combine the cells of all seeds: the mean of each row, and the failure of the first cell."""
    merged: dict[str, Any] = {
        name: [float(np.mean(values)) for values in zip(*(cell[name] for cell in cells), strict=True)]
        for name in ("correct", "log_likelihood")
    }
    merged["by_seed"] = [float(np.mean(cell["correct"])) for cell in cells]
    return merged | ({"failure": cells[0]["failure"]} if "failure" in cells[0] else {})
