"""StackedLoRA: the adapters of the running rows, laid out for one token per row; no gradients.

Adapters with the same modules, rank and number of rows form a stack: one batched product for all their A and one for
all their B, in place of one product per adapter. Nothing is padded, since a stack has one rank. The A of modules with
the same input (q, k and v; gate and up) share one tensor. When rows change, only new adapters are copied; between
tokens nothing is copied.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from llgbm.config import ModuleShape
from llgbm.errors import AdapterMismatchError
from llgbm.functional import Hook, PreparedLoRA
from llgbm.linears.shared_input import SharedInput, input_groups
from llgbm.lora import LoRAWeights

_BLOCK = 4
"""The capacity of a stack is a multiple of this many adapters, or 1."""


class _Kind(NamedTuple):
    modules: tuple[ModuleShape, ...]
    rank: int
    rows_each: int


class StackedLoRA:
    """The layout of one decoder's adapters, in the dtype and on the device of its model.

    Args:
        like: any tensor of that dtype and device.
    """

    def __init__(self, like: Tensor) -> None:
        self._like = like
        self._stacks: dict[_Kind, _Stack] = {}

    def arrange(self, rows: Sequence[LoRAWeights | None]) -> PreparedLoRA:
        """Lay out one adapter for each row, for `FunctionalLoRA.applied`. Earlier results become invalid.

        The adapters must fit the model. The context must be inside `torch.inference_mode` or `no_grad`.
        """
        places: dict[LoRAWeights, list[int]] = {}
        for place, adapter in enumerate(rows):
            if adapter is not None:
                places.setdefault(adapter, []).append(place)
        kinds: dict[_Kind, dict[LoRAWeights, list[int]]] = {}
        for adapter, its_rows in places.items():
            kind = _Kind(adapter.spec.modules, adapter.spec.rank, len(its_rows))
            kinds.setdefault(kind, {})[adapter] = its_rows
        self._stacks = {kind: self._stacks.get(kind) or _Stack(kind, self._like) for kind in kinds}
        parts = [self._stacks[kind].place(members, len(rows)) for kind, members in kinds.items()]
        hooks: dict[str, Hook] = {}
        names = dict.fromkeys(name for part in parts for name in part.stack.b)
        for group in input_groups(names):
            shared = SharedInput(_AProducts(group, parts, len(rows)), len(group))
            for reader, name in enumerate(group):
                hooks[name] = _BProducts(name, reader, shared, parts)
        return PreparedLoRA(hooks)


class _Part(NamedTuple):
    """A stack in a batch.

    Attributes:
        size: number of adapters.
        rows_each: rows per adapter.
        rows: (size * rows_each,) int64, their rows in the batch, adapter by adapter; None for all rows in order.
    """

    stack: _Stack
    size: int
    rows_each: int
    rows: Tensor | None


class _Stack:
    """Slots for adapters of one kind.

    Attributes:
        rank: of every adapter.
        a: first module of an input group -> (room, rank * modules of the group, in_features).
        b: module name -> (room, rank, out_features), transposed B times the adapter's scaling.
        places: module name -> (first module of its group, its index in the group).
    """

    def __init__(self, kind: _Kind, like: Tensor) -> None:
        self._kind, self._like, self.rank = kind, like, kind.rank
        self._slots: list[LoRAWeights] = []
        self._room = 0
        self._groups = input_groups(module.name for module in kind.modules)
        self.a: dict[str, Tensor] = {}
        self.b: dict[str, Tensor] = {}
        self.places = {name: (group[0], place) for group in self._groups for place, name in enumerate(group)}

    def place(self, members: Mapping[LoRAWeights, list[int]], total: int) -> _Part:
        """Put exactly these adapters into the first slots; adapters that keep their slot are not copied."""
        size = len(members)
        # grow at once, shrink only below half: room does not change with every row that comes and goes
        if size > self._room or self._room > 2 * size + _BLOCK:
            self._make_room(-(-size // _BLOCK) * _BLOCK if size > 1 else 1)
        staying = [adapter for adapter in self._slots[:size] if adapter in members]
        coming = [adapter for adapter in members if adapter not in staying]
        # new adapters take the slots of those that left, the others go behind
        slots = [a if a in members else coming.pop() for a in self._slots[:size]]
        slots += coming
        before, self._slots = self._slots, []  # if a copy fails, no slot counts as filled
        for slot, adapter in enumerate(slots):
            if slot >= len(before) or before[slot] is not adapter:
                self._write(slot, adapter)
        self._slots = slots
        order = [row for adapter in slots for row in members[adapter]]
        whole = order == list(range(total))
        rows = None if whole else torch.tensor(order, device=self._like.device)
        return _Part(self, size, self._kind.rows_each, rows)

    def _make_room(self, room: int) -> None:
        self._slots, self._room = [], room
        rank, shapes = self._kind.rank, {module.name: module for module in self._kind.modules}
        for group in self._groups:
            self.a[group[0]] = self._like.new_empty(room, rank * len(group), shapes[group[0]].in_features)
        for name, shape in shapes.items():
            self.b[name] = self._like.new_empty(room, rank, shape.out_features)

    def _write(self, slot: int, adapter: LoRAWeights) -> None:
        for name, a, b in adapter.pairs():
            first, place = self.places[name]
            # (modules of the group * rank, in) seen as (modules of the group, rank, in)
            self.a[first][slot].view(-1, *a.shape)[place] = a
            self.b[name][slot] = b.t()
            self.b[name][slot] *= adapter.spec.scaling  # once here, in place of a factor for every token


class _AProducts:
    """Input x of a group of modules -> index of a part -> one (size, rows_each, rank) tensor per module of the part.

    Parts without a module of the group are left out.
    """

    def __init__(self, group: tuple[str, ...], parts: Sequence[_Part], total: int) -> None:
        self._name, self._total = group[0], total
        self._parts: list[tuple[int, _Part, Tensor]] = []
        for number, part in enumerate(parts):
            first = next((part.stack.places[name][0] for name in group if name in part.stack.places), None)
            if first is not None:
                self._parts.append((number, part, part.stack.a[first][: part.size].transpose(1, 2)))

    def __call__(self, x: Tensor) -> dict[int, Sequence[Tensor]]:
        flat = x.reshape(-1, x.shape[-1])
        if flat.shape[0] != self._total:
            raise AdapterMismatchError(
                f"adapters were given for {self._total} rows of one token, but {self._name} sees an input of shape "
                f"{tuple(x.shape)}"
            )
        products: dict[int, Sequence[Tensor]] = {}
        for number, part, a in self._parts:
            rows = flat if part.rows is None else flat.index_select(0, part.rows)
            # (size, rows_each, in) @ (size, in, rank * modules), then one piece of `rank` columns per module
            products[number] = torch.bmm(rows.view(part.size, part.rows_each, -1), a).split(part.stack.rank, dim=2)
        return products


class _BProducts:
    """Adds the products of all parts to the output of one module."""

    def __init__(
        self, name: str, reader: int, shared: SharedInput[dict[int, Sequence[Tensor]]], parts: Sequence[_Part]
    ) -> None:
        self._reader, self._shared = reader, shared
        self._parts = [
            (number, part, part.stack.places[name][1], part.stack.b[name][: part.size])
            for number, part in enumerate(parts)
            if name in part.stack.places
        ]

    def __call__(self, x: Tensor, output: Tensor) -> Tensor:
        products = self._shared.read(self._reader, x)
        flat = output if output.dim() == 2 else output.view(-1, output.shape[-1])
        for number, part, place, b in self._parts:
            hidden = products[number][place]  # (size, rows_each, rank), times b (size, rank, out)
            if part.rows is not None:
                flat.index_add_(0, part.rows, torch.bmm(hidden, b).view(-1, flat.shape[-1]))
            elif part.size == 1 or flat.is_contiguous():
                flat.view(part.size, part.rows_each, -1).baddbmm_(hidden, b)
            else:  # int8 outputs are columns of a wider tensor, on which baddbmm_ works product by product
                flat.add_(torch.bmm(hidden, b).view_as(flat))
        return output
