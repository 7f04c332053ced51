"""A frozen Linear with an int8 weight, multiplied in a float dtype in both directions: training in little memory.

The weight is one matrix with one scale per output channel, as in `llgbm.linears.int8_file`, and may be a mapped file
that processes share. The rows are converted for the time of a product: an int8 number is exact in bfloat16. The scales
are multiplied into the output, and into the gradient before its product. Activations are not quantised.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llgbm.linears.int8 import Int8Weight

_MOST_CONVERTED = 1 << 23
"""Weights converted at a time: 16 MB in bfloat16. Only the head has more."""


class Int8WeightOnlyLinear(nn.Module):
    """y = x W^T + b; the gradient reaches `x`, never W or b.

    Args:
        weight: W (out, in); its rows are used in place.
        bias: b (out,).
        dtype: of the activations and products.
    """

    def __init__(self, weight: Int8Weight, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.rows.shape
        # no parameters or buffers, which a cast of the model would change
        self._rows, self._scales = weight.rows, weight.scales.to(dtype)
        self._bias = None if bias is None else bias.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features), in the dtype of `x`."""
        flat = x.reshape(-1, self.in_features)
        out: Tensor = _Product.apply(flat, self._rows, self._scales)  # type: ignore[no-untyped-call]
        out = out.view(*x.shape[:-1], self.out_features)
        return out if self._bias is None else out.add_(self._bias)


def weight_only_group(
    linears: Sequence[nn.Linear], weight: Int8Weight, bias: Tensor | None, dtype: torch.dtype
) -> list[Int8WeightOnlyLinear]:
    """Modules in place of `linears`, of which only the sizes are used.

    Args:
        weight, bias: of all linears, stacked along the output.
    """
    sizes = [linear.out_features for linear in linears]
    parts = zip(weight.rows.split(sizes), weight.scales.split(sizes), strict=True)
    biases: Sequence[Tensor | None] = [None] * len(sizes) if bias is None else bias.split(sizes)
    return [Int8WeightOnlyLinear(Int8Weight(*part), b, dtype) for part, b in zip(parts, biases, strict=True)]


class _Product(torch.autograd.Function):
    """x (n, in), rows (out, in) int8, scales (out,) -> (n, out)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor, scales: Tensor) -> Tensor:
        ctx.save_for_backward(rows, scales)
        parts = [F.linear(x, rows[piece].to(x.dtype)) for piece in _pieces(rows)]
        return (parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)).mul_(scales)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        rows, scales = ctx.saved_tensors
        scaled = grad * scales
        parts = [scaled[:, piece] @ rows[piece].to(grad.dtype) for piece in _pieces(rows)]
        # added in float32, since the head has many parts
        total = parts[0] if len(parts) == 1 else torch.stack(parts).sum(0, dtype=torch.float32).to(grad.dtype)
        return total, None, None


def _pieces(rows: Tensor) -> Iterator[slice]:
    """The rows to convert at a time."""
    size = max(1, _MOST_CONVERTED // rows.shape[1])
    return (slice(start, start + size) for start in range(0, len(rows), size))
