"""Frozen Linear layers that store their weight in fewer bits; except for int8 they pass gradients to their input.

`bfloat16` multiplies in bfloat16 and accumulates in float32 on CPUs with AVX512-BF16 or AMX, over twice as fast as
float32. On other CPUs bfloat16 products of many rows are up to a hundred times slower, so weights are converted to
float32 for each product. Products of few rows, as in decoding, are faster in bfloat16 everywhere. So on such a CPU the
ninth row changes the kernel, and the numbers of all rows within the rounding of bfloat16. `int8` is for decoding: a
quarter of the bytes to read for each token. Weights are symmetric with one scale per output channel; activations are
quantised on the fly with one scale per row. `int8_training` has int8 products in both directions, see
`llgbm.linears.int8`, and a head in bfloat16 if the CPU multiplies in it, else in float32. `int8_mapped` passes
gradients through the weights of the int8 file, see `llgbm.linears.int8_weight_only`, and has activations in
`product_dtype`. Other activations keep their dtype.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llgbm.errors import ConfigError
from llgbm.linears.int8 import FbgemmProduct, Int8TrainingLinear, Int8Weight
from llgbm.linears.int8_weight_only import weight_only_group
from llgbm.linears.shared_input import SharedInput, input_groups

Storage = Literal["float32", "bfloat16", "bfloat16_activations", "int8", "int8_training", "int8_mapped"]
_HEAD = "lm_head"
_FEW_ROWS = 8
"""Up to this many rows, a bfloat16 product is bound by reading the weight's bytes, on every CPU."""


class BFloat16Linear(nn.Linear):
    """y = x W^T + b with W stored in bfloat16; a Linear, so that PEFT can wrap it.

    On a CPU without bfloat16 products, more than a few rows are multiplied in float32.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self._multiplies = _multiplies_bfloat16()
        self.weight = nn.Parameter(linear.weight.detach().to(torch.bfloat16), requires_grad=False)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features), in the dtype of `x`."""
        few = x.numel() <= _FEW_ROWS * self.in_features  # rows of all leading dimensions together
        dtype = torch.bfloat16 if self._multiplies or few else torch.float32
        out: Tensor = _LowPrecisionProduct.apply(x, self.weight, dtype)  # type: ignore[no-untyped-call]
        return out if self.bias is None else out.add_(self.bias)


class _LowPrecisionProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
        # the stored weight is saved, not its conversion: nothing in float32 outlives the product
        ctx.save_for_backward(weight)
        ctx.dtype = dtype
        return F.linear(x.to(dtype), weight.to(dtype)).to(x.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return (grad.to(ctx.dtype) @ weight.to(ctx.dtype)).to(grad.dtype), None, None


class Int8Linear(nn.Module):
    """y = x W^T + b with W in int8 and x quantised row by row. No gradient: for decoding only.

    Each row of `x` has its own scale, so its result is bit-identical in every batch. Several modules may share one
    larger product; see `int8_group`.
    """

    def __init__(self, shared: SharedInput[Tensor], reader: int, columns: slice, in_features: int) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, columns.stop - columns.start
        self.shared, self.reader, self._columns = shared, reader, columns

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features), in the dtype of `x`; a view of the shared product."""
        return self.shared.read(self.reader, x)[..., self._columns]


def int8_group(linears: Sequence[nn.Linear]) -> list[Int8Linear]:
    """Modules for Linears with the same input, which is multiplied only once when they are called in turn.

    Raises:
        ConfigError: torch has no int8 kernel for this CPU.
    """
    return int8_readers(linears, FbgemmProduct(*stacked_int8(linears)))


def stacked_int8(linears: Sequence[nn.Linear]) -> tuple[Int8Weight, Tensor | None]:
    """Weight and bias of Linears with the same input, stacked along the output, quantised; no bias if none has one."""
    biases = [torch.zeros(m.out_features) if m.bias is None else m.bias.detach().float() for m in linears]
    return (
        Int8Weight.of(torch.cat([m.weight.detach().float() for m in linears])),
        torch.cat(biases) if any(m.bias is not None for m in linears) else None,
    )


def int8_readers(linears: Sequence[nn.Linear], product: FbgemmProduct) -> list[Int8Linear]:
    """Modules in place of `linears`, of which only the sizes are used: each reads its columns of one product.

    Args:
        linears: with the same input; they may be on the meta device.
        product: with weight and bias as `stacked_int8` makes them.
    """
    shared = SharedInput(product, len(linears))
    modules, start = [], 0
    for reader, linear in enumerate(linears):
        columns = slice(start, start + linear.out_features)
        modules.append(Int8Linear(shared, reader, columns, linear.in_features))
        start = columns.stop
    return modules


def product_of_all(modules: Sequence[nn.Module]) -> FbgemmProduct | None:
    """The product whose output is that of all `modules` side by side; None if there is no such product."""
    readers = [module for module in modules if isinstance(module, Int8Linear)]
    if len(readers) < len(modules) or len({id(reader.shared) for reader in readers}) != 1:
        return None
    shared = readers[0].shared
    whole = len(readers) == shared.readers and [r.reader for r in readers] == list(range(len(readers)))
    return shared.compute if whole and isinstance(shared.compute, FbgemmProduct) else None


def fastest_storage(device: str = "cpu") -> Storage:
    """The storage that decodes fastest: bfloat16 on a GPU; int8 on a CPU with a kernel for it, else float32."""
    if torch.device(device).type != "cpu":
        return "bfloat16"
    return "int8" if FbgemmProduct.supported() else "float32"


def store_linears(model: nn.Module, storage: Storage) -> None:
    """Replace every Linear of `model` in place.

    Raises:
        ConfigError: an unknown `storage`, or torch has no int8 kernel for this CPU.
    """
    if storage not in get_args(Storage):
        raise ConfigError(f"unknown storage {storage!r}; known are {', '.join(get_args(Storage))}")
    if storage == "float32":
        return
    if storage == "bfloat16_activations":
        if not _multiplies_bfloat16():
            raise ConfigError("this CPU has no bfloat16 products; choose int8_training or float32")
        _cast_parameters(model, torch.bfloat16)
        return
    linears = linears_of(model)
    for names in input_groups(linears):
        group = [linears.pop(name) for name in names]  # popped, so only one group is in memory in both forms
        for name, module in zip(names, _stored(group, names, storage), strict=True):
            model.set_submodule(name, module)
    if storage == "int8_mapped":
        _cast_parameters(model, product_dtype())


def linears_of(model: nn.Module) -> dict[str, nn.Linear]:
    """The Linears of `model` by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def fastest_training_storage(device: str = "cpu") -> Storage:
    """The fastest storage on `device` that passes gradients."""
    if torch.device(device).type != "cpu":
        return "bfloat16"
    return "bfloat16_activations" if _multiplies_bfloat16() else "int8_training"


def _cast_parameters(model: nn.Module, dtype: torch.dtype) -> None:
    """Cast the parameters but no buffers: the frequencies of the rotations need float32."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)


def _stored(group: Sequence[nn.Linear], names: Sequence[str], storage: Storage) -> Sequence[nn.Module]:
    if storage == "int8":
        return int8_group(group)
    if storage == "int8_mapped":
        return weight_only_group(group, *stacked_int8(group), product_dtype())
    if storage == "int8_training" and names[0].rpartition(".")[2] != _HEAD:
        return [Int8TrainingLinear(linear) for linear in group]
    if storage == "int8_training" and not _multiplies_bfloat16():
        return group
    return [BFloat16Linear(linear) for linear in group]


def product_dtype() -> torch.dtype:
    """bfloat16 if this CPU has instructions for its products, else float32."""
    return torch.bfloat16 if _multiplies_bfloat16() else torch.float32


def _multiplies_bfloat16() -> bool:
    """Whether this CPU has bfloat16 instructions; without them bfloat16 products are slower than float32 ones."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
