"""Limits the disk space of local copies of a remote store."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from service.adapter_id import ADAPTER_ID

IN_USE_SECONDS = 60.0
"""A copy used within this time is kept: its user may not have opened the files yet."""
_MEASURE_EVERY = 64
_KEPT_SHARE = 0.9  # of the limit, so that not every new copy needs an eviction


class Copies:
    """The adapter folders in `folder`; the least recently used are removed when they exceed `max_bytes`.

    A folder's modification time is its last use, so that all processes that share `folder` see it.

    Args:
        remove: removes a folder atomically.
    """

    def __init__(self, folder: Path, max_bytes: int, remove: Callable[[Path], object]) -> None:
        self._folder, self._max_bytes, self._remove = folder, max_bytes, remove
        self._lock = threading.Lock()
        self._bytes, self._added = 0, 0
        self.make_room()

    def used(self, identity: str) -> None:
        """Record that a copy is used now."""
        path, now = self._folder / identity, time.time()
        try:
            if path.stat().st_mtime < now - IN_USE_SECONDS / 2:
                os.utime(path)
        except FileNotFoundError:  # removed meanwhile; it is fetched again when needed
            return

    def added(self, num_bytes: int) -> None:
        """Record a new copy, and evict others if needed."""
        with self._lock:
            self._bytes += num_bytes
            self._added += 1
            due = self._bytes > self._max_bytes or self._added % _MEASURE_EVERY == 0  # other processes add copies too
        if due:
            self.make_room()

    def make_room(self) -> None:
        """Measure all copies, and remove the least recently used above the limit."""
        with self._lock:
            found = sorted(self._measured())
            total = sum(num_bytes for _, num_bytes, _ in found)
            if total > self._max_bytes:
                for used, num_bytes, name in found:
                    if total <= _KEPT_SHARE * self._max_bytes or used > time.time() - IN_USE_SECONDS:
                        break
                    self._remove(self._folder / name)
                    total -= num_bytes
            self._bytes = total

    def _measured(self) -> list[tuple[float, int, str]]:
        found = []
        with os.scandir(self._folder) as entries:
            for entry in entries:
                if ADAPTER_ID.fullmatch(entry.name):
                    try:
                        used = entry.stat(follow_symlinks=False).st_mtime
                        with os.scandir(entry.path) as files:
                            num_bytes = sum(file.stat(follow_symlinks=False).st_size for file in files)
                    except OSError:  # removed meanwhile
                        continue
                    found.append((used, num_bytes, entry.name))
        return found
