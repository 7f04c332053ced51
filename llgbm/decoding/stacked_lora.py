"""StackedLoRA: the adapters of the running rows, laid out for one token per row; no gradients.

Adapters with the same modules and rank form a stack: one batched product for all their A and one for all their B, in
place of one product per adapter. Both serve all Linears with the same input at once (q, k and v; gate and up). Stacks
differ in rank, so ranks are not padded. An adapter with fewer rows than others repeats one, and the few adapters with
many more rows get another product for these. When rows change, only new adapters are copied; between tokens nothing is
copied.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from llgbm.config import ModuleShape
from llgbm.decoding.mapped import grown, mapped_zeros, round_up
from llgbm.errors import AdapterMismatchError
from llgbm.linears.linear_group import LinearGroup
from llgbm.lora import LoRAWeights

_BLOCK = 4
"""The capacity of a stack is a multiple of this many adapters, or 1."""
_SHRINK_FACTOR = 4
"""Shrink when at most 1/N of a stack is used."""
_PART_ROWS = 16
"""One more batched product takes about as long as this many rows more in another."""


class _Kind(NamedTuple):
    modules: tuple[ModuleShape, ...]
    rank: int


class RowAdapters(NamedTuple):
    """The adapters of a batch.

    Attributes:
        rows: number of rows.
        products: for each group of Linears the products to add; None where no adapter changes the group.
    """

    rows: int
    products: Sequence[GroupProducts | None]


class StackedLoRA:
    """The layout of one decoder's adapters, in the dtype and on the device of its model.

    Args:
        groups: all Linears that an adapter may change.
        like: any tensor of that dtype and device.
    """

    def __init__(self, groups: Sequence[LinearGroup], like: Tensor) -> None:
        self._layouts = [_Layout(group) for group in groups]
        self._places = {
            name: (number, place) for number, group in enumerate(groups) for place, name in enumerate(group.names)
        }
        self._like = like
        self._stacks: dict[_Kind, _Stack] = {}

    def arrange(self, rows: Sequence[LoRAWeights | None]) -> RowAdapters:
        """Lay out one adapter for each row. Earlier results become invalid.

        The adapters must fit the model. The context must be inside `torch.inference_mode` or `no_grad`.

        Raises:
            AdapterMismatchError: an adapter changes a module that is in no group.
        """
        places: dict[LoRAWeights, list[int]] = {}
        for place, adapter in enumerate(rows):
            if adapter is not None:
                places.setdefault(adapter, []).append(place)
        kinds: dict[_Kind, dict[LoRAWeights, list[int]]] = {}
        for adapter, its_rows in places.items():
            kind = _Kind(adapter.spec.modules, adapter.spec.rank)
            kinds.setdefault(kind, {})[adapter] = its_rows
        self._stacks = {kind: self._stacks.get(kind) or self._stack(kind) for kind in kinds}
        parts = [part for kind, members in kinds.items() for part in self._stacks[kind].place(members, len(rows))]
        products: list[GroupProducts | None] = []
        for number, layout in enumerate(self._layouts):
            members = [part for part in parts if number in part.stack.a]
            products.append(GroupProducts(layout, number, members) if members else None)
        return RowAdapters(len(rows), products)

    def release(self) -> None:
        """Free large stacks while no row is running. A small one stays, for the next row with the same adapter."""
        self._stacks = {kind: stack for kind, stack in self._stacks.items() if stack.room <= _BLOCK}

    def _stack(self, kind: _Kind) -> _Stack:
        unknown = next((module.name for module in kind.modules if module.name not in self._places), None)
        if unknown is not None:
            raise AdapterMismatchError(f"the adapter changes {unknown}, which is not a part of a step of decoding")
        return _Stack(kind, self._layouts, {m.name: self._places[m.name] for m in kind.modules}, self._like)


class _Layout:
    """How the A and B of a group of Linears lie in memory.

    The outputs are cut into equal blocks that end where a Linear's output ends, so that one batched product serves
    Linears of different sizes: with 896, 128 and 128 outputs (q, k and v) these are 7, 1 and 1 blocks of 128.

    Attributes:
        modules: number of Linears.
        in_features: size of their input.
        blocks: number of blocks.
        block: outputs of one block.
        starts: first block of each Linear, and the number of blocks.
        owners: (blocks,) int64, the Linear of each block; None if each Linear has one block.
    """

    def __init__(self, group: LinearGroup) -> None:
        sizes = group.out_features
        self.modules, self.in_features, self.block = len(sizes), group.in_features, math.gcd(*sizes)
        counts = [size // self.block for size in sizes]
        self.blocks = sum(counts)
        self.starts = [sum(counts[:place]) for place in range(len(counts) + 1)]
        self.owners = (
            None if self.blocks == self.modules else torch.arange(self.modules).repeat_interleave(torch.tensor(counts))
        )


class _Part(NamedTuple):
    """Neighbouring slots of a stack, and rows of the batch with their adapters.

    Attributes:
        slots: of the stack.
        rows_each: rows per adapter in the products.
        rows: (slots * rows_each,) int64, the batch's rows in the products, adapter by adapter, repeated ones included;
            None for all rows of the batch in order.
        real: (n,) int64, the places in the products that are no repetition; None if there is none.
        targets: (n,) int64, the batch's row of each; None where `rows` is.
    """

    stack: _Stack
    slots: slice
    rows_each: int
    rows: Tensor | None
    real: Tensor | None
    targets: Tensor | None


class _Stack:
    """Slots for adapters of one kind.

    Linears of a group that the adapters do not change have zeros.

    Attributes:
        rank: of every adapter.
        room: number of slots.
        a: index of a group -> (room, modules of the group * rank, in_features).
        b: index of a group -> (room, blocks of the group, rank, block), transposed B times the adapter's scaling.
    """

    def __init__(
        self, kind: _Kind, layouts: Sequence[_Layout], places: Mapping[str, tuple[int, int]], like: Tensor
    ) -> None:
        self._kind, self._layouts, self._places, self._like, self.rank = kind, layouts, places, like, kind.rank
        self._slots: list[LoRAWeights] = []
        self.room = 0
        self.a: dict[int, Tensor] = {}
        self.b: dict[int, Tensor] = {}

    def place(self, members: Mapping[LoRAWeights, list[int]], total: int) -> list[_Part]:
        """Put exactly these adapters into the first slots; adapters that keep their slot are not copied."""
        size = len(members)
        # shrink only far below the room: it must not change with every row that comes and goes
        if size > self.room or size * _SHRINK_FACTOR < self.room:
            room = grown(size, self.room, _BLOCK) if size > self.room else round_up(size, _BLOCK)
            self._make_room(room if size > 1 else 1)
        staying = {adapter for adapter in self._slots[:size] if adapter in members}
        coming = [adapter for adapter in members if adapter not in staying]
        # new adapters take the slots of those that left, the others go behind
        slots = [a if a in members else coming.pop() for a in self._slots[:size]]
        slots += coming
        before, self._slots = self._slots, []  # if a copy fails, no slot counts as filled
        for slot, adapter in enumerate(slots):
            if slot >= len(before) or before[slot] is not adapter:
                self._write(slot, adapter)
        self._slots = slots
        rows = [members[adapter] for adapter in slots]
        each = _rows_each([len(its_rows) for its_rows in rows])
        parts = [self._part(0, [its_rows[:each] for its_rows in rows], each, total)]
        for slot, its_rows in enumerate(rows):
            if len(its_rows) > each:
                parts.append(self._part(slot, [its_rows[each:]], len(its_rows) - each, total))
        return parts

    def _part(self, first: int, rows: Sequence[list[int]], each: int, total: int) -> _Part:
        """A part of the slots from `first` on, with the given rows of their adapters, at most `each`."""
        slots, targets = slice(first, first + len(rows)), [row for its_rows in rows for row in its_rows]
        if targets == list(range(total)) and len(targets) == len(rows) * each:
            return _Part(self, slots, each, None, None, None)
        padded = [row for its_rows in rows for row in [*its_rows, *its_rows[:1] * (each - len(its_rows))]]
        real = [slot * each + place for slot, its_rows in enumerate(rows) for place in range(len(its_rows))]
        gathered, places, scattered = (
            torch.tensor(numbers, device=self._like.device) for numbers in (padded, real, targets)
        )
        return _Part(self, slots, each, gathered, None if len(real) == len(padded) else places, scattered)

    def _make_room(self, room: int) -> None:
        self._slots, self.room = [], room
        for number in {number for number, _ in self._places.values()}:
            layout = self._layouts[number]
            self.a[number] = mapped_zeros(self._like, room, layout.modules * self.rank, layout.in_features)
            self.b[number] = mapped_zeros(self._like, room, layout.blocks, self.rank, layout.block)

    def _write(self, slot: int, adapter: LoRAWeights) -> None:
        for name, a, b in adapter.pairs():
            number, place = self._places[name]
            start, stop = self._layouts[number].starts[place : place + 2]
            # (modules * rank, in) seen as (modules, rank, in)
            self.a[number][slot].view(-1, *a.shape)[place] = a
            # (out, rank) becomes (blocks of the module, rank, block)
            blocks = self.b[number][slot, start:stop]
            blocks.copy_(b.view(stop - start, -1, self.rank).mT)
            blocks *= adapter.spec.scaling  # once here, in place of a factor for every token


class GroupProducts:
    """Adds the products of all parts to the outputs of one group of Linears."""

    def __init__(self, layout: _Layout, number: int, parts: Sequence[_Part]) -> None:
        self._layout = layout
        owners = layout.owners
        self._parts = [
            # A (size, in, modules * rank), B (size * blocks, rank, block)
            (part, part.stack.a[number][part.slots].mT, part.stack.b[number][part.slots].flatten(0, 1))
            for part in parts
        ]
        self._owners = None if owners is None or not parts else owners.to(self._parts[0][1].device)

    def __call__(self, x: Tensor, outputs: Tensor) -> None:
        """Add to `outputs` (rows, sum of the outputs), in place, the products for `x` (rows, in); both contiguous."""
        modules, block, blocks = self._layout.modules, self._layout.block, self._layout.blocks
        for part, a, b in self._parts:
            size, each = len(a), part.rows_each
            rows = x if part.rows is None else x.index_select(0, part.rows)
            hidden = torch.bmm(rows.view(size, each, -1), a)  # (size, each, modules * rank)
            if modules > 1:
                hidden = hidden.view(size, each, modules, -1).transpose(1, 2)
                if self._owners is not None:
                    hidden = hidden.index_select(1, self._owners)
                hidden = hidden.flatten(0, 1)  # (size * blocks, each, rank)
            if part.rows is None and (each == 1 or blocks == 1):
                outputs.view(-1, each, block).baddbmm_(hidden, b)
                continue
            # (size * blocks, each, block) becomes (size * each, blocks * block)
            added = torch.bmm(hidden, b).view(size, blocks, each, block).transpose(1, 2).reshape(size * each, -1)
            if part.targets is None:
                outputs.add_(added)
            else:
                outputs.index_add_(0, part.targets, added if part.real is None else added.index_select(0, part.real))


def _rows_each(counts: Sequence[int]) -> int:
    """How many rows of each adapter the products of a whole stack have: the cheapest number."""

    def cost(each: int) -> int:
        return len(counts) * each + sum(_PART_ROWS + count - each for count in counts if count > each)

    return min(set(counts), key=cost)
