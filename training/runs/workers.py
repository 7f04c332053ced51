"""Who does independent pieces of work on one frozen base: the protocol, and the one that does them in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

from llgbm.base import Base
from llgbm.errors import ConfigError, LLGBMError

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
