"""Distributes independent work items on one frozen base over this process or the workers of a Ray cluster.

    with open_workers(config.ray, config.ray_task, base, config.base, config.base_storage) as workers:
        for item, result in workers.map(work, items):
            ...                                        # write the artefact of the item

The process that started the command reads all inputs and writes all artefacts. A worker only receives an item and
returns a result. It needs no shared disk, and a lost worker leaves no partial files behind.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from llgbm.base import Base
from llgbm.errors import ConfigError
from llgbm.linears.frozen_linear import Storage
from training.runs.workers import RayTask, ThisProcess, Workers


@contextmanager
def open_workers(address: str | None, task: RayTask, base: Base, name: str, storage: Storage) -> Iterator[Workers]:
    """The configured workers, until the block ends.

    Args:
        address: None for this process; for Ray `local` (a new cluster on this machine, until the block ends), `auto`
            (the cluster running on this machine) or the address of a cluster.
        task: resources that a task reserves.
        base: the base of this process.
        name, storage: arguments with which each worker process loads the base, once.

    Raises:
        ConfigError: Ray is not installed, there is no such cluster, or none of its machines is large enough for a task.
    """
    if address is None:
        yield ThisProcess(base)
        return
    if base.device.type != "cpu":
        raise ConfigError("workers of a Ray cluster compute on processors; leave out ray, or set device=cpu")
    try:
        from training.runs.ray_workers import ray_workers
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise ConfigError("ray is set but not installed: pip install -e '.[ray]', or leave out ray") from error
    with ray_workers(address, task, base, name, storage) as workers:
        yield workers
