"""LoRA products of many adapters on the spans of one packed row, with gradients: y[span] += s (x[span] A^T) B^T.

Neighbouring spans are multiplied by each other's adapters too, and a mask removes these products: a few larger products
are faster on a CPU than many small ones. Modules that read the same x share the products with A. The backward pass
keeps x and the rank-sized products only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

_SPANS_A_PRODUCT = 4
"""Spans of one product. More spans mean fewer calls, and more products that the mask throws away."""


@dataclass(frozen=True, eq=False)
class Piece:
    """Neighbouring spans that share their products: tokens `start` to `stop`, adapters `first` to `last`.

    Attributes:
        mask: (tokens, adapters * r), the scaling where a column belongs to the token's own adapter, elsewhere 0.
    """

    start: int
    stop: int
    first: int
    last: int
    mask: Tensor

    @property
    def tokens(self) -> slice:
        """The tokens of the piece."""
        return slice(self.start, self.stop)

    @property
    def own(self) -> slice:
        """Its adapters."""
        return slice(self.first, self.last)


@lru_cache(maxsize=4)  # all modules of a batch have the same spans
def pieces_of(
    bounds: tuple[tuple[int, int], ...],
    scalings: tuple[float, ...],
    rank: int,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[Piece, ...]:
    """The pieces of spans with these bounds, in tokens, and scalings of their adapters."""
    pieces = []
    for first in range(0, len(bounds), _SPANS_A_PRODUCT):
        members = bounds[first : first + _SPANS_A_PRODUCT]
        start, stop = members[0][0], members[-1][1]
        mask = torch.zeros(stop - start, len(members), rank, dtype=dtype, device=device)
        for place, (begin, end) in enumerate(members):
            mask[begin - start : end - start, place] = scalings[first + place]
        pieces.append(Piece(start, stop, first, first + len(members), mask.flatten(1)))
    return tuple(pieces)


def products_with_a(x: Tensor, pieces: Sequence[Piece], a: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The products s x A^T (T, c r) for each of several modules, with c adapters in a piece.

    Args:
        x: (T, in), the input of all of them.
        pieces: of the spans.
        a: A (G, r, in) of each module, one for each span.
    """
    hidden: tuple[Tensor, ...] = _ProductsWithA.apply(x, pieces, *a)  # type: ignore[no-untyped-call]
    return hidden


def add_products_with_b(output: Tensor, hidden: Tensor, pieces: Sequence[Piece], b: Tensor) -> Tensor:
    """`output` plus h B^T, in place: the gradient of a frozen Linear does not need its output.

    Args:
        output: (..., out), T rows in all.
        hidden: h (T, c r), of `products_with_a`.
        pieces: of the spans.
        b: B^T (G, r, out), one for each span.
    """
    result: Tensor = _AddProductsWithB.apply(output, hidden, pieces, b)  # type: ignore[no-untyped-call]
    return result


class _ProductsWithA(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, pieces: Sequence[Piece], *a: Tensor) -> tuple[Tensor, ...]:
        width = max(piece.mask.shape[1] for piece in pieces)
        hidden = tuple(x.new_empty(len(x), width) for _ in a)
        for piece in pieces:
            parts = (x[piece.tokens] @ _side_by_side(a, piece).t()).chunk(len(a), dim=1)  # (n, c r) each
            for out, part in zip(hidden, parts, strict=True):
                torch.mul(part, piece.mask, out=out[piece.tokens, : part.shape[1]])
        ctx.pieces = pieces
        ctx.save_for_backward(x, *a)
        return hidden

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, *a = ctx.saved_tensors
        wanted_x, wanted_a = ctx.needs_input_grad[0], any(ctx.needs_input_grad[2:])
        covered = sum(piece.stop - piece.start for piece in ctx.pieces) == len(x)
        grad_x = (torch.empty_like if covered else torch.zeros_like)(x) if wanted_x else None
        grad_a = [torch.empty_like(t) if wanted_a else None for t in a]
        for piece in ctx.pieces:
            # h = s x A^T, masked: dx = dh A, dA = dh^T x
            masked = [grad[piece.tokens, : piece.mask.shape[1]] * piece.mask for grad in grads]
            grad_h = torch.cat(masked, dim=1) if len(masked) > 1 else masked[0]  # (n, modules c r)
            if grad_x is not None:
                torch.mm(grad_h, _side_by_side(a, piece), out=grad_x[piece.tokens])
            if wanted_a:
                parts = (grad_h.t() @ x[piece.tokens]).chunk(len(a))  # (c r, in) each
                for target, part in zip(grad_a, parts, strict=True):
                    target[piece.own] = part.view_as(target[piece.own])  # type: ignore[index, union-attr]
        return grad_x, None, *grad_a


class _AddProductsWithB(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output: Tensor, h: Tensor, pieces: Sequence[Piece], b: Tensor) -> Tensor:
        flat = output.view(len(h), -1)
        for piece in pieces:
            flat[piece.tokens].addmm_(_hidden(h, piece), b[piece.own].flatten(0, 1))
        ctx.pieces = pieces
        ctx.save_for_backward(h, b)
        # The same memory as a new tensor. An output marked as changed may be a view, like that of a Linear with a bias,
        # and autograd would copy its gradient three times.
        return output.detach()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        h, b = ctx.saved_tensors
        flat = grad.reshape(len(h), -1)
        grad_h, grad_b = torch.empty_like(h), torch.empty_like(b)
        for piece in ctx.pieces:
            # y = h B^T: dh = g B, dB^T = h^T g
            g = flat[piece.tokens]  # (n, out)
            torch.mm(g, b[piece.own].flatten(0, 1).t(), out=_hidden(grad_h, piece))
            torch.mm(_hidden(h, piece).t(), g, out=grad_b[piece.own].view(-1, b.shape[2]))
        return grad, grad_h, None, grad_b


def _side_by_side(a: Sequence[Tensor], piece: Piece) -> Tensor:
    """(modules c r, in): the A of the piece's adapters, module by module."""
    parts = [t[piece.own].flatten(0, 1) for t in a]
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def _hidden(h: Tensor, piece: Piece) -> Tensor:
    """(n, c r): the rows and columns of a piece in (T, columns of the widest piece)."""
    return h[piece.tokens, : piece.mask.shape[1]]
