"""Shared code of the tests of jobs: the length of training, and the processes of jobs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


def epochs(count: int) -> Any:
    """The method of a job with `count` epochs and batches of one example."""
    return {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": count, "batch_size": 1}}}


LONG = epochs(50)
"""Method of a job that runs long enough to be interrupted."""


def workers(parent: int | None = None) -> list[int]:
    """Ids of the job processes that the process `parent` started; None for this process."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            own = entry.name.isdigit() and f"\nPPid:\t{parent or os.getpid()}\n" in (entry / "status").read_text()
            if own and b"service.jobs.worker" in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found
