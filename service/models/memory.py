"""Memory of a process that loads its models once and then serves until it ends."""

from __future__ import annotations

import ctypes
import gc
import platform
from collections.abc import Iterator
from contextlib import contextmanager

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGE = 2**18
"""Bytes; while models are loaded, larger blocks are mapped one by one and leave no holes behind."""
_LARGE_LATER = 2**25
"""Bytes; glibc's own largest value, which it reaches as soon as a block of that size was freed."""


@contextmanager
def loaded_for_good() -> Iterator[None]:
    """Inside, objects are loaded that live as long as the process.

    Python's collector is off inside: it would go over hundreds of thousands of new objects again and again, a tenth of
    the start's processor time. Nor does it look at them afterwards, when each full collection would hold up all answers
    for a third of a second. Memory that the loading has freed goes back to the system.
    """
    gc.freeze()  # everything that was imported before
    gc.disable()
    _map_blocks(_LARGE)
    try:
        yield
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()
        _map_blocks(_LARGE_LATER)
        if _is_glibc():
            ctypes.CDLL(None).malloc_trim(0)


def _map_blocks(size: int) -> None:
    """Have glibc map each block of at least `size` bytes, and keep twice as much at the end of its heap."""
    if _is_glibc():
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, size)
        mallopt(_M_TRIM_THRESHOLD, 2 * size)


def _is_glibc() -> bool:
    return platform.libc_ver()[0] == "glibc"
