"""Independent pieces of work on one frozen base: done in this process, or by the workers of a Ray cluster.

    with open_workers(config.ray, config.ray_task, base, config.base, config.base_storage) as workers:
        for item, result in workers.map(work, items):
            ...                                        # write the artefact of the item

The process that started the command reads all inputs and writes all artefacts. A worker gets an item, gives a result,
and shares no disk with anybody, so a lost one leaves nothing behind, and who wrote what is never in question.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, TypeVar

from llgbm.base import Base
from llgbm.errors import ConfigError, LLGBMError
from llgbm.linears.frozen_linear import Storage

Item = TypeVar("Item")
Result = TypeVar("Result")


class WorkerLostError(LLGBMError):
    """A piece of work was given up, since its workers were lost one after the other."""


class Workers(Protocol):
    """Whoever does the work."""

    def map(self, work: Callable[[Base, Item], Result], items: Iterable[Item]) -> Iterator[tuple[Item, Result]]:
        """Do `work(base, item)` for every item.

        Args:
            work: a function of a module, or a `functools.partial` of one; it, items and results may be pickled.
            items: taken as there is room for them, so they may be made on the way.

        Yields:
            Each item with its result, in the order in which they are finished.

        Raises:
            WorkerLostError: the retries of a piece of work are used up.
            Exception: what `work` raised, as it is.
        """
        ...


class ThisProcess:
    """The work is done here, one item after the other."""

    def __init__(self, base: Base) -> None:
        self._base = base

    def map(self, work: Callable[[Base, Item], Result], items: Iterable[Item]) -> Iterator[tuple[Item, Result]]:
        """`work(base, item)` for every item, in order."""
        for item in items:
            yield item, work(self._base, item)


@dataclass(frozen=True)
class RayTask:
    """What one task reserves on its machine, and how often it is tried; without effect unless `ray` is set."""

    cpus: float = 1.0
    """Processors that a task reserves; torch uses as many threads, at least one."""
    memory: int = 0
    """Bytes of memory that a task reserves; 0 reserves none. A worker holds a whole base, that of 0.5B has 2 GB."""
    retries: int = 3
    """How often a task is run again after its worker or its machine was lost."""

    def __post_init__(self) -> None:
        if self.cpus <= 0 or self.memory < 0 or self.retries < 0:
            raise ConfigError("ray_task: cpus must be above 0, memory and retries at least 0")


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
        raise ConfigError("ray is set but not installed: pip install -e '.[ray]', or leave out --ray") from error
    with ray_workers(address, task, base, name, storage) as workers:
        yield workers
