"""Keeps memory that tensors have freed, so that the next tensors need not ask the system for it again.

A step makes thousands of tensors of a few MB and lets them go. glibc gives each such block back to the system at once,
which then has to clear the pages of the next one: about a quarter of a training step (see `docs/PERFORMANCE.md`).
"""

from __future__ import annotations

import ctypes
import platform

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_MOST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Tell glibc's allocator to keep what is freed, for the rest of this process.

    Returns:
        Whether it was told; other C libraries are left as they are.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    wanted = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _MOST), (_M_TOP_PAD, 2**28))
    return all(mallopt(parameter, value) == 1 for parameter, value in wanted)
