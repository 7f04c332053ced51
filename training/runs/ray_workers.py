"""Ray does the work of `training.runs.fan_out`: one Ray task for an item, on whichever machine has room.

Ray keeps the worker processes of a run and gives them one task after the other, so the base is loaded once in each of
them. Ray runs a task again if its process or its machine was lost (`max_retries`); an error of the work itself is not
tried again, since it would be the same.
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
"""Tasks that are handed to Ray for each that can run, so that no worker waits for the next one."""


class RayWorkers:
    """The workers of the cluster that this process is connected to.

    Args:
        base: as loaded here; a worker that finds other weights under its name refuses to work.
        name, storage: with which workers load it.
    """

    def __init__(self, task: RayTask, base: Base, name: str, storage: Storage) -> None:
        self._task, self._slots = task, _slots(task)
        # a worker's working folder may be another one
        place = str(Path(name).expanduser().resolve()) if Path(name).expanduser().is_dir() else name
        self._base = (place, storage, base.revision)

    def map(self, work: Callable[[Base, Item], Result], items: Iterable[Item]) -> Iterator[tuple[Item, Result]]:
        """See `training.runs.workers.Workers`; results come in the order in which they are ready."""
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
    """Workers of a cluster, which is left, or stopped if it was started for this, at the end of the block.

    A process that has connected itself to Ray before stays connected, and its cluster is the one that works.

    Raises:
        ConfigError: there is no such cluster, or no machine of it is large enough for a task.
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
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a private cluster reports to nobody
        options["include_dashboard"] = False
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **options)
    except ConnectionError as error:
        raise ConfigError(
            f"ray: no cluster at {address!r}; start one with `ray start --head`, or take local"
        ) from error


def _slots(task: RayTask) -> int:
    """Tasks that the machines can run at once, by their processors."""
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
        raise (error.cause or error) from None  # what the work raised, without the worker's stack in its text
    except ray.exceptions.RayError as error:
        raise WorkerLostError(
            f"a task was given up after {task.retries} retries, its worker was lost each time "
            f"({type(error).__name__}); look at memory first (ray_task.memory, ray_task.cpus), "
            "then run the command again: it goes on from here"
        ) from error


@lru_cache(maxsize=1)
def _loaded(name: str, storage: Storage) -> Base:
    return load_base(name, storage=storage)


def _run(
    work: Callable[[Base, Item], Result], item: Item, name: str, storage: Storage, revision: str, threads: int
) -> tuple[Result, str]:
    """In a worker: the result, and which worker it is from."""
    torch.set_num_threads(threads)
    base = _loaded(name, storage)
    worker = f"{ray.util.get_node_ip_address()}/{os.getpid()}"
    if base.revision != revision:
        raise CacheMismatchError(
            f"worker {worker} has other weights under {name} than the machine that started the run"
        )
    return work(base, item), worker
