"""Memory of a process that loads its models once and then serves until it ends."""

from __future__ import annotations

import ctypes
import gc
import platform
from collections.abc import Iterator
from contextlib import contextmanager

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGE = 2**18
"""Bytes. During loading, larger blocks are mapped separately, so that freeing them leaves no holes in the heap."""
_LARGE_LATER = 2**24
"""Bytes. So the file of an adapter (18 MB), which is read as a whole, is mapped and leaves no hole; glibc itself would
come to 2**25."""


@contextmanager
def loaded_for_good() -> Iterator[None]:
    """A block that loads objects which live as long as the process.

    Python's garbage collector is off inside the block. It would repeatedly visit hundreds of thousands of new objects,
    a tenth of the start's processor time. After the block it ignores these objects, because each full collection would
    delay all answers by a third of a second. Freed memory is returned to the system.
    """
    gc.freeze()  # all imported modules
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
    """Make glibc map each block of at least `size` bytes, and keep twice as much free at the end of its heap."""
    if _is_glibc():
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, size)
        mallopt(_M_TRIM_THRESHOLD, 2 * size)


def _is_glibc() -> bool:
    return platform.libc_ver()[0] == "glibc"
