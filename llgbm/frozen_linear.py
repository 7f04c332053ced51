"""Frozen Linear layers that store their weight in fewer bits and still pass gradients to their input.

`bfloat16` multiplies in bfloat16 and accumulates in float32; on processors with AVX512-BF16 or AMX it is over
twice as fast as float32, on others slower. `int8` (symmetric, one scale for each output channel, activations
quantised on the fly) is for decoding: a quarter of the bytes to read for each token. Activations come in and
go out in their own dtype.
"""

from __future__ import annotations

import warnings
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llgbm.errors import ConfigError

Storage = Literal["float32", "bfloat16", "int8"]


class BFloat16Linear(nn.Linear):
    """y = x W^T + b with W stored in bfloat16; a Linear, so that PEFT can wrap it to train teachers."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self.weight = nn.Parameter(linear.weight.detach().to(torch.bfloat16), requires_grad=False)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features), in the dtype of `x`."""
        out: Tensor = _LowPrecisionProduct.apply(x, self.weight)  # type: ignore[no-untyped-call]
        return out if self.bias is None else out.add_(self.bias)


class _LowPrecisionProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return F.linear(x.to(weight.dtype), weight).to(x.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (weight,) = ctx.saved_tensors
        return (grad.to(weight.dtype) @ weight).to(grad.dtype), None


class Int8Linear(nn.Module):
    """y = x W^T + b with W in int8 through torch's dynamic quantised kernel. No gradient, so only to decode.

    Activations are quantised with one scale for the whole batch, so a row's numbers depend a little on the
    other rows.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.weight.detach().float()
        scales = weight.abs().amax(dim=1).clamp_min(1e-8) / 127
        zeros = torch.zeros(self.out_features, dtype=torch.long)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch announces a successor of this kernel that is not faster on a CPU
            quantised = torch.quantize_per_channel(weight, scales.double(), zeros, 0, torch.qint8)
            self._packed = torch.ops.quantized.linear_prepack(
                quantised, None if linear.bias is None else linear.bias.detach().float()
            )

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features), in the dtype of `x`."""
        out = torch.ops.quantized.linear_dynamic(x.float(), self._packed, reduce_range=False)
        return cast(Tensor, out).to(x.dtype)


def store_linears(model: nn.Module, storage: Storage, *, skip: tuple[str, ...] = ()) -> None:
    """Replace every Linear of `model` in place, except those whose last name part is in `skip`.

    Raises:
        ConfigError: `storage` is none of float32, bfloat16, int8.
    """
    if storage == "float32":
        return
    kinds: dict[str, type[nn.Module]] = {"bfloat16": BFloat16Linear, "int8": Int8Linear}
    if storage not in kinds:
        raise ConfigError(f"unknown storage {storage!r}; known are float32, bfloat16, int8")
    for name, module in list(model.named_modules()):
        parent, _, last = name.rpartition(".")
        if isinstance(module, nn.Linear) and last not in skip:
            setattr(model.get_submodule(parent), last, kinds[storage](module))
