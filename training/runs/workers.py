"""The protocol of workers for independent work items on one frozen base, and its implementation in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

from llgbm.base import Base
from llgbm.errors import ConfigError, LLGBMError

Item = TypeVar("Item")
Result = TypeVar("Result")


class WorkerLostError(LLGBMError):
    """A work item was given up, because its worker was lost at every try."""


class Workers(Protocol):
    """Applies a function to items."""

    def map(self, work: Callable[[Base, Item], Result], items: Iterable[Item]) -> Iterator[tuple[Item, Result]]:
        """Call `work(base, item)` for every item.

        Args:
            work: a module-level function, or a `functools.partial` of one; it, items and results must be picklable.
            items: consumed lazily, so they may be generated on the fly.

        Yields:
            Each item with its result, in the order of completion.

        Raises:
            WorkerLostError: the retries of an item are used up.
            Exception: an error of `work`, unchanged.
        """
        ...


class ThisProcess:
    """Does the work in this process, one item after the other."""

    def __init__(self, base: Base) -> None:
        self._base = base

    def map(self, work: Callable[[Base, Item], Result], items: Iterable[Item]) -> Iterator[tuple[Item, Result]]:
        """`work(base, item)` for every item, in order."""
        for item in items:
            yield item, work(self._base, item)


@dataclass(frozen=True)
class RayTask:
    """Resources that one task reserves, and its retries; no effect unless `ray` is set."""

    cpus: float = 1.0
    """Processors that a task reserves; torch uses the same number of threads, at least one."""
    memory: int = 0
    """Bytes of memory that a task reserves; 0 reserves none. Each worker loads the whole base (0.5B: 2 GB)."""
    retries: int = 3
    """Number of retries after a task's worker or machine was lost."""

    def __post_init__(self) -> None:
        if self.cpus <= 0 or self.memory < 0 or self.retries < 0:
            raise ConfigError("ray_task: cpus must be above 0, memory and retries at least 0")
