"""A small cache of the most recently set values."""

from __future__ import annotations

import threading
from typing import Generic, TypeVar

_V = TypeVar("_V")


class Recent(Generic[_V]):
    """The values of the `size` most recently set keys. Thread-safe."""

    def __init__(self, size: int) -> None:
        self._size, self._values, self._lock = size, dict[str, _V](), threading.Lock()

    def get(self, key: str) -> _V | None:
        """The value of a key; None if it is not kept (any more)."""
        return self._values.get(key)

    def __setitem__(self, key: str, value: _V) -> None:
        with self._lock:
            self._values.pop(key, None)  # so that it becomes the last one
            self._values[key] = value
            while len(self._values) > self._size:
                del self._values[next(iter(self._values))]

    def pop(self, key: str) -> None:
        """Remove a key, if it exists."""
        with self._lock:
            self._values.pop(key, None)

    def clear(self) -> None:
        """Remove all keys."""
        with self._lock:
            self._values.clear()

    def __len__(self) -> int:
        return len(self._values)
