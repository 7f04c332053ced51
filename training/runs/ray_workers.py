"""The Ray workers of `training.runs.fan_out`: one Ray task per item, on any machine with free resources.

Ray reuses the worker processes of a run, so each of them loads the base once. Ray retries a task if its process or its
machine was lost (`max_retries`). An error of the work itself is not retried, since it would occur again.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import ray
import structlog
import torch

from llgbm.base import Base, load_base
from llgbm.errors import CacheMismatchError, ConfigError
from llgbm.linears.frozen_linear import Storage
from training.runs.workers import Item, RayTask, Result, WorkerLostError

_AHEAD = 2
"""Tasks submitted to Ray per task that can run at once, so that no worker waits for the next task."""


class RayWorkers:
    """The workers of the cluster that this process is connected to.

    Args:
        base: the base of this process; a worker that loads other weights under its name raises an error.
        name, storage: arguments with which workers load the base.
    """

    def __init__(self, task: RayTask, base: Base, name: str, storage: Storage) -> None:
        self._task, self._slots = task, _slots(task)
        # absolute, because a worker may have another working directory
        place = str(Path(name).expanduser().resolve()) if Path(name).expanduser().is_dir() else name
        self._base = (place, storage, base.revision)

    def map(self, work: Callable[[Base, Item], Result], items: Iterable[Item]) -> Iterator[tuple[Item, Result]]:
        """See `training.runs.workers.Workers`; results come in the order of completion."""
        run: Any = ray.remote(_run).options(
            num_cpus=self._task.cpus, memory=self._task.memory or None, max_retries=self._task.retries
        )
        shared, threads = ray.put(work), max(1, int(self._task.cpus))
        waiting, running = iter(items), dict[Any, Item]()
        done_by: Counter[str] = Counter()
        try:
            while True:
                while len(running) < _AHEAD * self._slots:
                    try:
                        item = next(waiting)
                    except StopIteration:
                        break
                    running[run.remote(shared, item, *self._base, threads)] = item
                if not running:
                    break
                (ready,), _ = ray.wait(list(running), num_returns=1)
                item = running.pop(ready)
                result, worker = _result(ready, self._task)
                done_by[worker] += 1
                yield item, result
        finally:
            for unfinished in running:
                ray.cancel(unfinished)
            structlog.get_logger().info("workers", tasks=dict(done_by))


@contextmanager
def ray_workers(address: str, task: RayTask, base: Base, name: str, storage: Storage) -> Iterator[RayWorkers]:
    """Workers of a cluster. At the end of the block, a `local` cluster is stopped, and any other is disconnected.

    If this process is connected to Ray already, its cluster is used, and it stays connected.

    Raises:
        ConfigError: there is no such cluster, or none of its machines is large enough for a task.
    """
    mine = not ray.is_initialized()
    if mine:
        _connect(address)
    try:
        yield RayWorkers(task, base, name, storage)
    finally:
        if mine:
            ray.shutdown()


def _connect(address: str) -> None:
    if address not in ("auto", "local") and ":" not in address:
        raise ConfigError(f"ray: {address!r} is neither auto, local nor an address such as 10.0.0.5:6379")
    options: dict[str, Any] = {}
    if address == "local":
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no telemetry from a private cluster
        options["include_dashboard"] = False
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **options)
    except ConnectionError as error:
        raise ConfigError(
            f"ray: no cluster at {address!r}; start one with `ray start --head`, or set ray=local"
        ) from error


def _slots(task: RayTask) -> int:
    """Number of tasks that the machines can run at once, by their processors."""
    processors = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]
    slots = sum(int(count // task.cpus) for count in processors)
    if not slots:
        raise ConfigError(
            f"ray_task.cpus: {task.cpus:g} are more than any machine of the cluster has, "
            f"which is {max(processors, default=0):g} at most"
        )
    return slots


def _result(reference: Any, task: RayTask) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise (error.cause or error) from None  # the original error, without the worker's traceback in its text
    except ray.exceptions.RayError as error:
        raise WorkerLostError(
            f"a task was given up after {task.retries} retries, because its worker was lost each time "
            f"({type(error).__name__}); check the memory first (ray_task.memory, ray_task.cpus), "
            "then run the command again to resume"
        ) from error


@lru_cache(maxsize=1)
def _loaded(name: str, storage: Storage) -> Base:
    return load_base(name, storage=storage)


def _run(
    work: Callable[[Base, Item], Result], item: Item, name: str, storage: Storage, revision: str, threads: int
) -> tuple[Result, str]:
    """Runs in a worker; returns the result and the worker's name."""
    torch.set_num_threads(threads)
    base = _loaded(name, storage)
    worker = f"{ray.util.get_node_ip_address()}/{os.getpid()}"
    if base.revision != revision:
        raise CacheMismatchError(
            f"worker {worker} has other weights under {name} than the machine that started the run"
        )
    return work(base, item), worker
