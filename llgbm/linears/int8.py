"""A frozen Linear with int8 products in both directions: for training through the base, faster than float32.

The weight is stored twice: with one scale per output channel for the forward product, and with one scale per input
channel for the gradient. A scale can be factored out only along a dimension that the product does not sum over.
Activations and gradients are quantised on the fly with one scale per row, so a token of large magnitude costs only
itself precision.

The kernel depends on the CPU. With VNNI `torch._int_mm` is the fastest. Without VNNI oneDNN has no fast kernel for it
(2 GFLOP/s, float32 has 100), so FBGEMM's is used, with 7-bit activations.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from llgbm.errors import ConfigError

Product = Callable[[Tensor], Tensor]
"""x (rows, in) -> x W^T (rows, out), in the dtype of `x`."""

_INPUT_QUANTISED_ON_THE_FLY = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32.default
_LEVELS = 127
"""Largest int8 magnitude in use. Symmetric: -128 is left out, so no zero point is needed."""

_WARNING_FILTERS = threading.Lock()


class Int8TrainingLinear(nn.Linear):
    """y = x W^T + b with int8 products forward and backward; the gradient reaches `x`, never W or b.

    A Linear, so that PEFT can wrap it; its own `weight` is empty, so PEFT cannot merge into it.

    Args:
        linear: the frozen Linear to store; its bias stays as it is.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self.weight = nn.Parameter(torch.empty(0), requires_grad=False)
        self.bias = linear.bias
        weight = linear.weight.detach().float()
        # x W^T sums over in, with one scale per row of W; the gradient g W sums over out, with one per row of W^T
        self._to_output, self._to_input = int8_product(weight), int8_product(weight.t().contiguous())

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features), in the dtype of `x`."""
        rows = x.reshape(-1, self.in_features)
        out: Tensor = _Int8Product.apply(rows, self._to_output, self._to_input)  # type: ignore[no-untyped-call]
        out = out.view(*x.shape[:-1], self.out_features)
        return out if self.bias is None else out.add_(self.bias)


class _Int8Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, to_output: Product, to_input: Product) -> Tensor:
        ctx.to_input = to_input
        return to_output(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return ctx.to_input(grad), None, None


def int8_product(weight: Tensor) -> Product:
    """The product with `weight` (out, in) float32, by the fastest int8 kernel of this CPU."""
    if torch.cpu._is_vnni_supported() or not FbgemmProduct.supported():
        return IntMmProduct(weight)
    return FbgemmProduct(weight)


class IntMmProduct(nn.Module):
    """x -> x W^T through `torch._int_mm`, with int8 W and x, one scale per row of W and one per row of x.

    Args:
        weight: W (out, in), float32.
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        rows, scales = quantised_rows(weight)
        # transposed once here: the kernel multiplies x (rows, in) by (in, out)
        self._weight = nn.Buffer(rows.t().contiguous(), persistent=False)  # (in, out)
        self._scales = nn.Buffer(scales.t().contiguous(), persistent=False)  # (1, out)

    def forward(self, x: Tensor) -> Tensor:
        """(rows, in) -> (rows, out), in the dtype of `x`."""
        rows, row_scales = quantised_rows(x.float())  # (rows, in) int8, (rows, 1)
        # torch 2.13 reads a matrix with a side of 1 in the wrong order
        whole = torch._int_mm(rows, self._weight) if min(self._weight.shape) > 1 else rows.int() @ self._weight.int()
        # (rows, out) int32; to float first, since int32 times float32 is many times slower
        return whole.float().mul_(self._scales).mul_(row_scales).to(x.dtype)


def quantised_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """int8 of the shape of `x` (rows, n), and the scale of each row (rows, 1) float32: x is about int8 * scale."""
    # the largest magnitude without a copy of |x|; 1e-20 keeps a row of zeros from 0 / 0
    largest = torch.maximum(x.amax(1, keepdim=True), x.amin(1, keepdim=True).neg_())
    scales = largest.clamp_min_(1e-20).div_(_LEVELS)
    return (x / scales).round_().to(torch.int8), scales


class Int8Weight(NamedTuple):
    """A weight W (out, in) in int8, symmetric, with one scale per row: W is about rows * scales[:, None].

    Attributes:
        rows: (out, in) int8.
        scales: (out,) float32.
    """

    rows: Tensor
    scales: Tensor

    @classmethod
    def of(cls, weight: Tensor) -> Int8Weight:
        """Quantise W (out, in), float32."""
        scales = weight.abs().amax(dim=1).clamp_min(1e-8) / _LEVELS  # symmetric, so all zero points are 0
        with _torch_may_deprecate():
            zeros = torch.zeros(len(weight), dtype=torch.long)
            return cls(torch.quantize_per_channel(weight, scales.double(), zeros, 0, torch.qint8).int_repr(), scales)


@contextmanager
def _torch_may_deprecate() -> Iterator[None]:
    """Torch warns that it deprecates its quantised tensors; not inside. Their successors are not faster on a CPU."""
    # filters belong to the process: two threads that change them at the same time could leave each other's behind
    with _WARNING_FILTERS, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class FbgemmProduct:
    """x -> x W^T + b with int8 W and x, one scale per row of W and one per row of x.

    The kernel has one activation scale for all rows. So each row is first divided by its largest magnitude, and its
    product is multiplied by it again. No gradient.

    Args:
        weight: W (out, in) in float32, or quantised before. The kernel keeps a copy in its own order.
        bias: b (out,), float32.

    Raises:
        ConfigError: torch has no int8 kernel for this CPU.
    """

    def __init__(self, weight: Tensor | Int8Weight, bias: Tensor | None = None) -> None:
        if not self.supported():
            raise ConfigError("this build of torch has no int8 kernel for this CPU; choose the storage float32")
        # Without VNNI the kernel adds pairs of uint8 * int8 products in 16 bits. 2 * 255 * 127 overflows there,
        # 2 * 127 * 127 fits, so activations get 7 bits.
        self._steps = 127 if torch.cpu._is_vnni_supported() else 63
        rows, scales = weight if isinstance(weight, Int8Weight) else Int8Weight.of(weight)
        zeros = torch.zeros(len(rows), dtype=torch.long)
        with _torch_may_deprecate():
            quantised = torch._make_per_channel_quantized_tensor(rows, scales.double(), zeros, 0)
        self._packed = torch.ops.quantized.linear_prepack(quantised, None)
        self._bias = bias

    @staticmethod
    def supported() -> bool:
        """Whether this build of torch has the kernel for this CPU."""
        return "fbgemm" in torch.backends.quantized.supported_engines

    def __call__(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out), in the dtype of `x`."""
        out, largest = self._divided(x)
        out = out.mul_(largest) if self._bias is None else torch.addcmul(self._bias, out, largest)
        return out.to(x.dtype)

    def add_to(self, total: Tensor, x: Tensor) -> None:
        """Add the output for `x` (..., in) to `total` (..., out), in place."""
        out, largest = self._divided(x)
        total.addcmul_(out.to(total.dtype), largest.to(total.dtype))
        if self._bias is not None:
            total.add_(self._bias)

    def _divided(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The product (..., out) without the bias, each row divided by its largest input; these largest, (..., 1)."""
        rows = x.float()
        largest = rows.abs().amax(dim=-1, keepdim=True)  # (..., 1)
        # rows / largest lies in -1 .. 1 and becomes uint8: times steps, plus a zero point of steps + 1. A row of zeros
        # is NaN here, which becomes some uint8 too: its output is finite, and 0 when it is multiplied by `largest`.
        out: Tensor = _INPUT_QUANTISED_ON_THE_FLY(rows / largest, 1 / self._steps, self._steps + 1, self._packed)
        return out, largest
