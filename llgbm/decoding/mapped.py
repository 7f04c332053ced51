"""Zeros for tensors that grow, shrink and live longer than a pass, and how much room they get."""

from __future__ import annotations

import contextlib
import math
import mmap

import torch
from torch import Tensor

_PRIVATE = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_ANONYMOUS") else {}


def mapped_zeros(like: Tensor, *shape: int) -> Tensor:
    """Zeros of the dtype and on the device of `like`.

    On the CPU they are pages of their own, not a part of the heap. So a page takes memory only when it is first written
    to, and all of them go back to the system with the tensor. On the heap, tensors that were replaced by larger ones
    left holes which nothing else fitted into: with 64 rows, half of what the heap had. On a GPU they take memory at
    once.

    Raises:
        OSError, RuntimeError: not enough memory.
    """
    count = math.prod(shape)
    if like.device.type != "cpu" or count == 0:
        return like.new_zeros(shape)
    pages = mmap.mmap(-1, count * like.element_size(), **_PRIVATE)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):  # else one written byte may take 2 MB
        with contextlib.suppress(OSError):  # a kernel without huge pages
            pages.madvise(mmap.MADV_NOHUGEPAGE)
    return torch.frombuffer(pages, dtype=like.dtype).view(shape)


def grown(wanted: int, room: int, block: int) -> int:
    """The room for `wanted` places, a multiple of `block`, where there is room for fewer.

    It is half more than before at least, so that a batch that fills is not copied again for every few rows.
    """
    return round_up(max(wanted, room * 3 // 2), block)


def round_up(number: int, block: int) -> int:
    """The next multiple of `block`."""
    return -(-number // block) * block
