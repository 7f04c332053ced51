"""What the tests of jobs share: how long a job trains, and the processes that do it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


def epochs(count: int) -> Any:
    """The method of a job with so many epochs of single examples."""
    return {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": count, "batch_size": 1}}}


LONG = epochs(50)
"""Of a job that takes long enough to be disturbed."""


def workers(parent: int | None = None) -> list[int]:
    """Processes of jobs that a process started; this one if `parent` is None."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            own = entry.name.isdigit() and f"\nPPid:\t{parent or os.getpid()}\n" in (entry / "status").read_text()
            if own and b"service.jobs.worker" in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found
