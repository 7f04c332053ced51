"""Worker threads in addition to the decoding thread: they read, write, hash and check tensors, without slowing it down.

torch runs large operations with OpenMP, which keeps a thread team for each calling thread. If all teams together have
more threads than the machine has processors, the threads no longer wait actively for their next piece of work but
sleep. Waking them hundreds of times for each token costs a quarter of the decoding time. So only the decoding thread
has a team.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch
from threadpoolctl import threadpool_limits


def worker_threads() -> ThreadPoolExecutor:
    """An executor for `asyncio.to_thread` whose threads use no OpenMP team."""
    return ThreadPoolExecutor(thread_name_prefix="llgbm-worker", initializer=_compute_alone)


def _compute_alone() -> None:
    torch.get_num_threads()  # torch sets it at a thread's first query: it must not overwrite the limit
    threadpool_limits(1, user_api="openmp")  # OpenMP keeps this limit for each calling thread
