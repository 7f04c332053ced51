"""Frozen Linear layers that store their weight in fewer bits and still pass gradients to their input.

`bfloat16` multiplies in bfloat16 and accumulates in float32 on processors with AVX512-BF16 or AMX, over twice as
fast as float32. On others such products of many rows are up to a hundred times slower, so there weights are made
float32 for the time of a product; of few rows, as in decoding, they are faster. So there the ninth row changes the
kernel, and with it the numbers of the others, by the rounding of bfloat16. `int8` is for decoding: a quarter of
the bytes to read for each token. It is symmetric, with one scale for each output channel, and activations are quantised
on the fly with one scale for each row. `int8_training` has int8 products in both directions, see
`llgbm.linears.int8`, and the head in bfloat16 where the processor multiplies in it, else in float32.
Activations come in and go out in their own dtype.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llgbm.errors import ConfigError
from llgbm.linears.int8 import FbgemmProduct, Int8TrainingLinear
from llgbm.linears.shared_input import SharedInput, input_groups

Storage = Literal["float32", "bfloat16", "bfloat16_activations", "int8", "int8_training"]
_HEAD = "lm_head"
_FEW_ROWS = 8
"""Up to so many, a bfloat16 product costs the bytes of its weight, whatever the processor multiplies in."""


class BFloat16Linear(nn.Linear):
    """y = x W^T + b with W stored in bfloat16; a Linear, so that PEFT can wrap it to train teachers.

    Where the processor does not multiply in bfloat16, products of more than a few rows are made in float32.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self._multiplies = _multiplies_bfloat16()
        self.weight = nn.Parameter(linear.weight.detach().to(torch.bfloat16), requires_grad=False)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features), in the dtype of `x`."""
        few = x.numel() <= _FEW_ROWS * self.in_features
        dtype = torch.bfloat16 if self._multiplies or few else torch.float32
        out: Tensor = _LowPrecisionProduct.apply(x, self.weight, dtype)  # type: ignore[no-untyped-call]
        return out if self.bias is None else out.add_(self.bias)


class _LowPrecisionProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.dtype = dtype
        return F.linear(x.to(dtype), weight.to(dtype)).to(x.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return (grad.to(ctx.dtype) @ weight.to(ctx.dtype)).to(grad.dtype), None, None


class Int8Linear(nn.Module):
    """y = x W^T + b with W in int8 and x quantised row by row. No gradient, so only to decode.

    Each row of `x` has its own scale, so its numbers do not depend, to the last bit, on the rows beside it. A module
    may be a part of a larger product that several modules share; see `int8_group`.
    """

    def __init__(self, shared: SharedInput[Tensor], reader: int, columns: slice, in_features: int) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, columns.stop - columns.start
        self._shared, self._reader, self._columns = shared, reader, columns

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features), in the dtype of `x`; a view of the shared product."""
        return self._shared.read(self._reader, x)[..., self._columns]


def int8_group(linears: Sequence[nn.Linear]) -> list[Int8Linear]:
    """Linears that read the same input, as modules that have it multiplied only once when they are called in turn.

    Raises:
        ConfigError: torch has no int8 kernel for this processor.
    """
    biases = [torch.zeros(m.out_features) if m.bias is None else m.bias.detach().float() for m in linears]
    product = FbgemmProduct(
        torch.cat([m.weight.detach().float() for m in linears]),
        torch.cat(biases) if any(m.bias is not None for m in linears) else None,
    )
    shared = SharedInput(product, len(linears))
    modules, start = [], 0
    for reader, linear in enumerate(linears):
        columns = slice(start, start + linear.out_features)
        modules.append(Int8Linear(shared, reader, columns, linear.in_features))
        start = columns.stop
    return modules


def store_linears(model: nn.Module, storage: Storage, *, skip: tuple[str, ...] = ()) -> None:
    """Replace every Linear of `model` in place, except those whose last name part is in `skip`.

    Raises:
        ConfigError: an unknown `storage`, or torch has no int8 kernel for this processor.
    """
    if storage not in get_args(Storage):
        raise ConfigError(f"unknown storage {storage!r}; known are {', '.join(get_args(Storage))}")
    if storage == "float32":
        return
    if storage == "bfloat16_activations":
        if not _multiplies_bfloat16():
            raise ConfigError("this processor has no bfloat16 products; choose int8_training or float32")
        model.to(torch.bfloat16)
        return
    linears = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] not in skip
    }
    for names in input_groups(linears):
        group = [linears.pop(name) for name in names]  # popped, so that both forms of all weights are never in memory
        for name, module in zip(names, _stored(group, names, storage), strict=True):
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, module)


def _stored(group: Sequence[nn.Linear], names: Sequence[str], storage: Storage) -> Sequence[nn.Module]:
    if storage == "int8":
        return int8_group(group)
    if storage == "int8_training" and names[0].rpartition(".")[2] != _HEAD:
        return [Int8TrainingLinear(linear) for linear in group]
    if storage == "int8_training" and not _multiplies_bfloat16():
        return group
    return [BFloat16Linear(linear) for linear in group]


def _multiplies_bfloat16() -> bool:
    """Whether this processor has bfloat16 products; without them they are slower than those in float32."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
