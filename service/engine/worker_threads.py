"""Threads beside the one that decodes: they read, write, hash and check tensors, and must not slow it down.

torch computes a large operation with OpenMP, which keeps a team of threads for every thread that it was called from. As
soon as all teams together are more threads than processors, the threads of each stop waiting actively for their next
piece of work and go to sleep in between, and waking them hundreds of times a token costs a quarter of its time. So
only the thread that decodes has a team.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch
from threadpoolctl import threadpool_limits


def worker_threads() -> ThreadPoolExecutor:
    """An executor for `asyncio.to_thread` whose threads compute alone."""
    return ThreadPoolExecutor(thread_name_prefix="llgbm-worker", initializer=_compute_alone)


def _compute_alone() -> None:
    torch.get_num_threads()  # torch sets a thread's number when it first asks for it, and would set it again later
    threadpool_limits(1, user_api="openmp")  # of the calling thread, as OpenMP has it
