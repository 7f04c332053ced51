"""Independent pieces of work on one frozen base: done in this process, or by the workers of a Ray cluster.

    with open_workers(config.ray, config.ray_task, base, config.base, config.base_storage) as workers:
        for item, result in workers.map(work, items):
            ...                                        # write the artefact of the item

The process that started the command reads all inputs and writes all artefacts. A worker gets an item, gives a result,
and shares no disk with anybody, so a lost one leaves nothing behind, and who wrote what is never in question.
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
    """The workers that a configuration asks for, until the block ends.

    Args:
        address: None for this process; for Ray `local` (a cluster on this machine, for as long as the block), `auto`
            (the one that runs here) or the address of one.
        task: what a task reserves.
        base: as loaded here.
        name, storage: with which workers load it themselves, once in each process.

    Raises:
        ConfigError: Ray is not installed, there is no such cluster, or no machine of it is large enough for a task.
    """
    if address is None:
        yield ThisProcess(base)
        return
    try:
        from training.runs.ray_workers import ray_workers
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise ConfigError("ray is set but not installed: pip install -e '.[ray]', or leave out ray") from error
    with ray_workers(address, task, base, name, storage) as workers:
        yield workers
