"""LoRA products of many adapters on the spans of one packed row, with gradients: y[span] += s (x[span] A^T) B^T.

Neighbouring spans are multiplied by each other's adapters too, and a mask removes these products: a few larger products
are faster on a CPU than many small ones. Modules that read the same x share the products with A. The backward pass
keeps x and the rank-sized products only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

_SPANS_A_PRODUCT = 4
"""Spans of one product. More spans mean fewer calls, and more products that the mask throws away."""


@dataclass(frozen=True, eq=False)
class Pieces:
    """All T tokens of a row in pieces of neighbouring spans that share their products.

    Attributes:
        sizes: tokens of each piece.
        columns: for each piece c r, with c adapters of rank r.
        masks: for each piece (tokens, c r): the scaling where a column belongs to the token's own adapter, elsewhere 0.
    """

    sizes: list[int]
    columns: list[int]
    masks: list[Tensor]

    def tokens(self, x: Tensor) -> Sequence[Tensor]:
        """The rows of each piece in (T, n), views."""
        return torch.split(x, self.sizes)

    def factors(self, factors: Tensor) -> Sequence[Tensor]:
        """The adapters (c r, n) of each piece in (G, r, n), views."""
        return torch.split(factors.flatten(0, 1), self.columns)

    def hidden(self, hidden: Tensor) -> Sequence[Tensor]:
        """The rank-sized products (tokens, c r) of each piece in (T, c r of the widest piece), views."""
        wide = zip(torch.split(hidden, self.sizes), self.columns, strict=True)
        return [part if part.shape[1] == columns else part[:, :columns] for part, columns in wide]


@lru_cache(maxsize=4)  # all modules of a batch have the same spans
def pieces_of(
    total: int,
    bounds: tuple[tuple[int, int], ...],
    scalings: tuple[float, ...],
    rank: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Pieces:
    """The pieces of spans with these bounds, in a row of `total` tokens, and with these scalings of their adapters.

    Args:
        total: T. Tokens without a span belong to a piece too, and the mask leaves them out.
        bounds: first and last token of each span, in order.
        scalings: of the spans' adapters.
        rank: r.
        dtype, device: of the masks.
    """
    sizes: list[int] = []
    columns: list[int] = []
    masks: list[Tensor] = []
    for first in range(0, len(bounds), _SPANS_A_PRODUCT):
        last = first + _SPANS_A_PRODUCT
        start = sum(sizes)
        stop = bounds[last][0] if last < len(bounds) else total
        members = bounds[first:last]
        mask = torch.zeros(stop - start, len(members), rank, dtype=dtype, device=device)
        for place, (begin, end) in enumerate(members):
            mask[begin - start : end - start, place] = scalings[first + place]
        sizes.append(stop - start)
        columns.append(len(members) * rank)
        masks.append(mask.flatten(1))
    return Pieces(sizes, columns, masks)


class InputGradient:
    """The gradient of an input x (T, in) that several frozen Linears read, summed up by the products themselves.

    The backward passes of `add_products_with_b` add to it. That of `products_with_a` runs after them, adds its own and
    takes it. It may not run at all, if only gradients of B are asked for, so a sum is valid in its own pass only.
    """

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._of_pass = -1

    def add(self, grad: Tensor, weight: Tensor) -> None:
        """Add g W for the gradient g (T, out) of a Linear's output and its W (out, in)."""
        found = self._sum_of_this_pass()
        self._sum = grad @ weight if found is None else found.addmm_(grad, weight)
        self._of_pass = torch._C._current_graph_task_id()

    def take(self, x: Tensor) -> Tensor:
        """The sum, of the shape of `x`; it starts again at 0."""
        found = self._sum_of_this_pass()
        self._sum = None
        return torch.zeros_like(x) if found is None else found

    def _sum_of_this_pass(self) -> Tensor | None:
        return self._sum if self._of_pass == torch._C._current_graph_task_id() else None


def products_with_a(x: Tensor, pieces: Pieces, a: Sequence[Tensor], gradient: InputGradient) -> tuple[Tensor, ...]:
    """The products s x A^T (T, c r) for each of several modules, with c adapters in a piece.

    Args:
        x: (T, in), the input of all of them.
        pieces: of the spans.
        a: A (G, r, in) of each module, one for each span.
        gradient: of `x`, for `add_products_with_b`.
    """
    hidden: tuple[Tensor, ...] = _ProductsWithA.apply(x, pieces, gradient, *a)  # type: ignore[no-untyped-call]
    return hidden


def add_products_with_b(
    output: Tensor, hidden: Tensor, pieces: Pieces, b: Tensor, through: tuple[InputGradient, Tensor] | None
) -> Tensor:
    """`output` plus h B^T, in place: the gradient of a frozen Linear does not need its output.

    Args:
        output: (..., out), T rows in all.
        hidden: h (T, c r), of `products_with_a`.
        pieces: of the spans.
        b: B^T (G, r, out), one for each span.
        through: the gradient of the Linear's input and its weight W (out, in), if `output` has no graph of its own.
    """
    result: Tensor = _AddProductsWithB.apply(output, hidden, pieces, b, through)  # type: ignore[no-untyped-call]
    return result


class _ProductsWithA(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, pieces: Pieces, gradient: InputGradient, *a: Tensor) -> tuple[Tensor, ...]:
        hidden = tuple(x.new_empty(len(x), max(pieces.columns)) for _ in a)
        of_pieces = zip(
            pieces.tokens(x), _by_piece(pieces.factors, a), _by_piece(pieces.hidden, hidden), pieces.masks, strict=True
        )
        for own, factors, outs, mask in of_pieces:
            parts = (own @ _joined(factors, 0).t()).chunk(len(a), dim=1)  # (n, c r) each
            for out, part in zip(outs, parts, strict=True):
                torch.mul(part, mask, out=out)
        ctx.pieces, ctx.gradient = pieces, gradient
        ctx.save_for_backward(x, *a)
        return hidden

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, *a = ctx.saved_tensors
        pieces = ctx.pieces
        wanted_x, wanted_a = ctx.needs_input_grad[0], any(ctx.needs_input_grad[3:])
        grad_x = ctx.gradient.take(x)
        grad_a = [torch.empty_like(t) if wanted_a else t for t in a]
        of_pieces = zip(
            pieces.tokens(x),
            _by_piece(pieces.factors, a),
            _by_piece(pieces.hidden, grads),
            pieces.masks,
            pieces.tokens(grad_x),
            _by_piece(pieces.factors, grad_a),
            strict=True,
        )
        for own, factors, of_hidden, mask, own_grad_x, own_grad_a in of_pieces:
            # h = s x A^T, masked: dx = dh A, dA = dh^T x
            grad_h = _joined([grad * mask for grad in of_hidden], 1)  # (n, modules c r)
            if wanted_x:
                own_grad_x.addmm_(grad_h, _joined(factors, 0))
            if wanted_a:
                parts = (grad_h.t() @ own).chunk(len(a))  # (c r, in) each
                for target, part in zip(own_grad_a, parts, strict=True):
                    target.copy_(part)
        return grad_x if wanted_x else None, None, None, *(grad_a if wanted_a else [None] * len(a))


class _AddProductsWithB(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, output: Tensor, h: Tensor, pieces: Pieces, b: Tensor, through: tuple[InputGradient, Tensor] | None
    ) -> Tensor:
        flat = output.view(len(h), -1)
        for own, of_hidden, factor in zip(pieces.tokens(flat), pieces.hidden(h), pieces.factors(b), strict=True):
            own.addmm_(of_hidden, factor)
        ctx.pieces, ctx.through = pieces, through
        ctx.save_for_backward(h, b)
        # The same memory as a new tensor. An output marked as changed may be a view, like that of a Linear with a bias,
        # and autograd would copy its gradient three times.
        return output.detach()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        h, b = ctx.saved_tensors
        pieces = ctx.pieces
        flat = grad.reshape(len(h), -1)
        grad_h, grad_b = torch.empty_like(h), torch.empty_like(b)
        of_pieces = zip(
            pieces.tokens(flat),
            pieces.hidden(h),
            pieces.factors(b),
            pieces.hidden(grad_h),
            pieces.factors(grad_b),
            strict=True,
        )
        for g, of_hidden, factor, own_grad_h, own_grad_b in of_pieces:
            # y = h B^T: dh = g B, dB^T = h^T g
            torch.mm(g, factor.t(), out=own_grad_h)
            torch.mm(of_hidden.t(), g, out=own_grad_b)
        if ctx.through is None:
            return grad, grad_h, None, grad_b, None
        gradient, weight = ctx.through
        gradient.add(flat, weight)
        return None, grad_h, None, grad_b, None


def _by_piece(split: Callable[[Tensor], Sequence[Tensor]], tensors: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
    """For each piece the parts of all modules' tensors."""
    return list(zip(*(split(tensor) for tensor in tensors), strict=True))


def _joined(parts: Sequence[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=dim)
