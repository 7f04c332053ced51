"""One computation for several modules with the same input: q, k and v; gate and up."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from torch import Tensor

_READ_TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))

_T = TypeVar("_T")


def input_groups(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Module names grouped by input, each group in the order of the model's calls."""
    groups: dict[tuple[str, object], list[str]] = {}
    for name in names:
        parent, _, last = name.rpartition(".")
        siblings = next((s for s in _READ_TOGETHER if last in s), (last,))
        groups.setdefault((parent, siblings), []).append(name)
    order = {last: place for siblings in _READ_TOGETHER for place, last in enumerate(siblings)}
    return [tuple(sorted(group, key=lambda n: order.get(n.rpartition(".")[2], 0))) for group in groups.values()]


class SharedInput(Generic[_T]):
    """Computes a result for the first reader of an input, and hands it to the others.

    A result is valid for the same tensor object only, and once for each reader. A second read by one reader computes
    it again, so an input overwritten in place is not mistaken for the old one. The result is released after the last
    read.

    Args:
        compute: input -> result.
        readers: number of readers; they are numbered 0 to readers - 1.
    """

    def __init__(self, compute: Callable[[Tensor], _T], readers: int) -> None:
        self.compute, self.readers = compute, readers
        self._waiting: set[int] = set()
        self._kept: tuple[Tensor, _T] | None = None

    def read(self, reader: int, x: Tensor) -> _T:
        """The result for `x`."""
        if self.readers == 1:
            return self.compute(x)
        kept = self._kept
        if kept is None or kept[0] is not x or reader not in self._waiting:
            kept = self._kept = (x, self.compute(x))
            self._waiting = set(range(self.readers))
        self._waiting.discard(reader)
        if not self._waiting:
            self._kept = None
        return kept[1]
