"""Temporary folders of the store, and how those of dead writers are told from those of living ones.

A writer that is killed cannot clean up. While it lives it holds a lock on its folder, which the kernel drops when the
process ends; `sweep` removes the folders that nobody holds, at once and however old or young they are. The locks tell
the processes of one machine from each other.
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
    """A path in `store` that nothing has, under a name that `sweep` looks for."""
    return store / f"{PREFIX}{uuid.uuid4().hex}"


@contextlib.contextmanager
def work_folder(store: Path) -> Iterator[Path]:
    """A new folder in `store` that is removed at the end, with what is left in it.

    Raises:
        OSError: it cannot be made.
    """
    path, handle = _make(store)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(handle)


def sweep(store: Path) -> None:
    """Remove what killed processes left; what living ones work in stays."""
    for path in store.glob(PREFIX + "*"):
        with contextlib.suppress(OSError):  # held, or gone meanwhile
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
        # A file system without locks refuses both this one and the one that sweeping needs: nothing is swept there.
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_SH)
        if path.exists():  # not swept before it was locked
            return path, handle
        os.close(handle)
