"""A frozen Linear whose products are int8 in both directions: for training through the base, faster than bfloat16.

The weight is kept twice, once with a scale for each output channel for the forward product and once with a scale for
each input channel for the gradient, since a scale can only be taken out of the side that a product does not sum over.
Activations and gradients are quantised on the fly with one scale for each row, so that a token of large magnitude
costs only itself precision.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_LEVELS = 127


class Int8TrainingLinear(nn.Linear):
    """y = x W^T + b with int8 products forward and backward; the gradient reaches `x`, never W or b.

    A Linear, so that PEFT can wrap it to train teachers; its own `weight` is empty, so PEFT cannot merge into it.

    Args:
        linear: the frozen Linear to store; its bias stays as it is.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self.weight = nn.Parameter(torch.empty(0), requires_grad=False)
        weight = linear.weight.detach().float()
        by_output, output_scales = quantised_rows(weight)
        by_input, input_scales = quantised_rows(weight.t())
        self.bias = linear.bias
        self._by_output = nn.Buffer(by_output.t().contiguous(), persistent=False)  # (in, out)
        self._by_input = nn.Buffer(by_input.t().contiguous(), persistent=False)  # (out, in)
        self._output_scales = nn.Buffer(output_scales.t().contiguous(), persistent=False)  # (1, out)
        self._input_scales = nn.Buffer(input_scales.t().contiguous(), persistent=False)  # (1, in)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features), in the dtype of `x`."""
        factors = self._by_output, self._output_scales, self._by_input, self._input_scales
        out: Tensor = _Int8Product.apply(x.reshape(-1, self.in_features), *factors)  # type: ignore[no-untyped-call]
        out = out.view(*x.shape[:-1], self.out_features)
        return out if self.bias is None else out.add_(self.bias)


class _Int8Product(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, by_output: Tensor, output_scales: Tensor, by_input: Tensor, input_scales: Tensor
    ) -> Tensor:
        ctx.save_for_backward(by_input, input_scales)
        return _product(x, by_output, output_scales)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        by_input, input_scales = ctx.saved_tensors
        return _product(grad, by_input, input_scales), None, None, None, None


def quantised_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """int8 of the shape of `x` (rows, n), and the scale of each row (rows, 1) float32: x is about int8 * scale."""
    largest = torch.maximum(x.amax(1, keepdim=True), x.amin(1, keepdim=True).neg_())
    scales = largest.clamp_min_(1e-20).div_(_LEVELS)
    return (x / scales).round_().to(torch.int8), scales


def _product(x: Tensor, weight: Tensor, scales: Tensor) -> Tensor:
    """X (rows, n) @ weight (n, m) int8, times `scales` (1, m): (rows, m) in the dtype of `x`."""
    rows, row_scales = quantised_rows(x.float())
    # torch 2.13 reads a matrix with a side of one in the wrong order
    whole = torch._int_mm(rows, weight) if min(weight.shape) > 1 else rows.int() @ weight.int()
    # to float first, since the product of an int32 and a float tensor is many times slower
    return whole.float().mul_(scales).mul_(row_scales).to(x.dtype)
