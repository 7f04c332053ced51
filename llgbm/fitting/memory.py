"""Makes glibc keep freed memory for the next tensors.

A step allocates and frees thousands of tensors of a few MB. By default glibc returns each such block to the system at
once, and the system clears the pages of the next one. This takes a quarter of a training step (`docs/PERFORMANCE.md`).
"""

from __future__ import annotations

import ctypes
import platform

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
# M_MMAP_MAX 0: allocate from the heap, never with mmap. M_TRIM_THRESHOLD: never shrink the heap. M_TOP_PAD: grow it by
# 256 MiB at a time.
_MOST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Configure glibc's allocator to keep freed memory for the rest of this process.

    Returns:
        Whether this worked; other C libraries are left unchanged.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    wanted = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _MOST), (_M_TOP_PAD, 2**28))
    return all(mallopt(parameter, value) == 1 for parameter, value in wanted)
