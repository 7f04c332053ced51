"""Temporary folders of the store, and the removal of those left by dead processes.

A killed writer cannot clean up. A live one holds a lock on its folder, which the kernel releases when the process ends.
`sweep` removes all folders without a lock, whatever their age. The locks work between processes of one machine.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

PREFIX = ".tmp-"


def unused_path(store: Path) -> Path:
    """A new path in `store`, with a name that `sweep` recognises."""
    return store / f"{PREFIX}{uuid.uuid4().hex}"


@contextlib.contextmanager
def work_folder(store: Path) -> Iterator[Path]:
    """A new folder in `store`, removed at the end with its remaining content.

    Raises:
        OSError: the folder cannot be made.
    """
    path, handle = _make(store)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(handle)


def sweep(store: Path) -> None:
    """Remove folders of dead processes; folders of live ones are kept."""
    with os.scandir(store) as entries:  # glob would keep all entries of the store in memory
        found = [store / entry.name for entry in entries if entry.name.startswith(PREFIX)]
    for path in found:
        with contextlib.suppress(OSError):  # locked, or removed meanwhile
            handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(handle)


def _make(store: Path) -> tuple[Path, int]:
    while True:
        path = unused_path(store)
        path.mkdir()
        try:
            handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:  # swept between the two calls
            continue
        except OSError:
            path.rmdir()
            raise
        # A file system without locks refuses this lock and that of `sweep`, so nothing is swept there.
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_SH)
        if path.exists():  # it was not swept before the lock
            return path, handle
        os.close(handle)
