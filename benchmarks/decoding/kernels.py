"""Candidate kernels for decoding and training.

`python -m benchmarks.decoding.kernels` prints their times on this machine. It is not a part of `make bench`.

First table: the product of a Linear of the 0.5B base for 1 to 64 rows. The weights are not in the caches, as in
decoding. The table also has the relative error, and whether a row's result depends on the other rows. Second table: the
products of LoRA in decoding. Third table: a frozen Linear in training, forward and gradient of its input, in each
storage. The results explain choices in docs/PERFORMANCE.md.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.measuring.measure import pin
from llgbm.linears.frozen_linear import Storage, int8_group, store_linears

_LINEARS = ((896, 4864), (4864, 896), (896, 896), (896, 151_936))
_ROWS = (1, 8, 16, 64)
_TRAINED: tuple[Storage, ...] = ("float32", "bfloat16", "int8_training")
_TRAINING_ROWS = 800
_CACHE_BYTES = 100e6
"""Bytes of weights that are used in turn; more than fits in the caches."""
_MEASUREMENTS = 9


@dataclass(frozen=True)
class _Kernel:
    """A matrix product: `store` converts the weight to the form that `run` reads."""

    store: Callable[[Tensor], Any]
    run: Callable[[Tensor, Any], Tensor]


def _quantised(weight: Tensor) -> tuple[Tensor, Tensor]:
    scale = weight.abs().amax(1) / 127  # (out,): one scale per output row, so that the largest weight becomes 127
    return (weight / scale[:, None]).round().to(torch.int8), scale


def _dynamic(weight: Tensor) -> Any:
    quantised, scale = _quantised(weight)
    zeros = torch.zeros(len(scale), dtype=torch.long)
    packed = torch._make_per_channel_quantized_tensor(quantised, scale.double(), zeros, 0)
    return torch.ops.quantized.linear_prepack(packed, None)


def _int_mm(x: Tensor, stored: tuple[Tensor, Tensor]) -> Tensor:
    scale = x.abs().amax(-1, keepdim=True) / 127
    product = torch._int_mm((x / scale).round().to(torch.int8), stored[0].t())
    return product.float().mul_(scale).mul_(stored[1])


_KERNELS = {
    "float32": _Kernel(lambda w: w, F.linear),
    "bfloat16": _Kernel(lambda w: w.bfloat16(), lambda x, w: F.linear(x.bfloat16(), w).float()),
    "int8, one scale for all rows (linear_dynamic)": _Kernel(
        _dynamic, lambda x, w: torch.ops.quantized.linear_dynamic(x, w, reduce_range=False)
    ),
    "int8, one scale a row (Int8Linear)": _Kernel(lambda w: int8_group([_linear(w)])[0], lambda x, module: module(x)),
    "int8, one scale a row (_int_mm)": _Kernel(_quantised, _int_mm),
    "int8 weights, bfloat16 activations (_weight_int8pack_mm)": _Kernel(
        lambda w: (_quantised(w)[0], _quantised(w)[1].bfloat16()),
        lambda x, w: torch._weight_int8pack_mm(x.bfloat16(), w[0], w[1]).float(),
    ),
}


def _linear(weight: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    return linear


def _microseconds(run: Callable[[Any], object], copies: Sequence[Any]) -> float:
    for copy in copies[:2]:
        run(copy)
    times = []
    for number in range(_MEASUREMENTS):
        start = time.perf_counter()
        run(copies[number % len(copies)])
        times.append(time.perf_counter() - start)
    return 1e6 * statistics.median(times)


def linears() -> None:
    """Print the first table: one line per shape and kernel."""
    print("| Linear | kernel | " + " | ".join(f"{n} rows, us" for n in _ROWS) + " | error | rows independent |")
    print("|---|---|" + "---|" * (len(_ROWS) + 2))
    for inputs, outputs in _LINEARS:
        copies = max(1, min(40, int(_CACHE_BYTES / (inputs * outputs))))
        weights = [torch.randn(outputs, inputs) * 0.02 for _ in range(copies)]
        for name, kernel in _KERNELS.items():
            print(f"| {inputs} -> {outputs} | {name} | {_linear_cells(kernel, weights)} |", flush=True)


def _linear_cells(kernel: _Kernel, weights: list[Tensor]) -> str:
    stored = [kernel.store(weight) for weight in weights]
    x = torch.randn(max(_ROWS), weights[0].shape[1])
    times = [_microseconds(partial(kernel.run, x[:rows]), stored) for rows in _ROWS]
    expected, actual = F.linear(x, weights[0]), kernel.run(x, stored[0])
    # scale all other rows: with one scale for all rows (linear_dynamic), the result of row 0 changes
    louder = x.clone()
    louder[1:] *= 100
    cells = [f"{time:.0f}" for time in times]
    cells.append(_error(actual, expected))
    cells.append("yes" if torch.equal(kernel.run(louder, stored[0])[0], actual[0]) else "no")
    return " | ".join(cells)


def lora_products() -> None:
    """Print the second table: all A of a q, k, v group, and one B, for rows with one adapter each."""
    print("| rows, an adapter each | A: one product a row | A: batched | B: one product a row | B: batched |")
    print("|---|---|---|---|---|")
    for rows in (1, 8, 32):
        print(f"| {rows} | {_lora_cells(rows)} |", flush=True)


def _lora_cells(rows: int) -> str:
    a = [torch.randn(rows, 24, 896) for _ in range(12)]
    b = [torch.randn(rows, 8, 4864) for _ in range(12)]
    x, hidden, out = torch.randn(rows, 896), torch.randn(rows, 8), torch.randn(rows, 4864)
    times = [
        _microseconds(lambda w: [torch.mv(w[i], x[i]) for i in range(rows)], a),
        _microseconds(lambda w: torch.bmm(x[:, None], w.transpose(1, 2)), a),
        _microseconds(lambda w: [out[i].addmv_(w[i].t(), hidden[i]) for i in range(rows)], b),
        _microseconds(lambda w: out[:, None].baddbmm_(hidden[:, None], w), b),
    ]
    return " | ".join(f"{time:.0f} us" for time in times)


def training() -> None:
    """Print the third table: one line per shape and storage, for the rows of a whole batch."""
    print(f"| Linear, {_TRAINING_ROWS} rows | storage | GFLOP/s | error of the output | error of the gradient |")
    print("|---|---|---|---|---|")
    for inputs, outputs in _LINEARS[:2]:
        weight, upstream = torch.randn(outputs, inputs) * 0.02, torch.randn(_TRAINING_ROWS, outputs)
        x = torch.randn(_TRAINING_ROWS, inputs).requires_grad_()
        expected = F.linear(x.detach(), weight), upstream @ weight
        for storage in _TRAINED:
            parent = nn.Sequential(_linear(weight))
            store_linears(parent, storage)
            both = partial(_both_ways, x, upstream)
            # 2 operations per weight and row, forward and for the gradient of the input; microseconds to GFLOP/s
            rate = 4 * _TRAINING_ROWS * weight.numel() / 1e3 / _microseconds(both, [parent])
            errors = " | ".join(_error(a, e) for a, e in zip(both(parent), expected, strict=True))
            print(f"| {inputs} -> {outputs} | {storage} | {rate:.0f} | {errors} |", flush=True)


def _error(actual: Tensor, expected: Tensor) -> str:
    return f"{100 * float((actual - expected).norm() / expected.norm()):.1f} %"


def _both_ways(x: Tensor, upstream: Tensor, module: nn.Module) -> tuple[Tensor, Tensor]:
    out: Tensor = module(x)
    return out.detach(), torch.autograd.grad(out, x, upstream)[0]


_TABLES = {"linears": linears, "lora": lora_products, "training": training}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--only", choices=_TABLES, nargs="+", default=list(_TABLES), help="tables to print; by default all"
    )
    arguments = parser.parse_args()
    pin(arguments.threads)
    warnings.simplefilter("ignore")  # torch's deprecation warnings of quantised tensors
    for name in arguments.only:
        with torch.inference_mode(name != "training"):
            _TABLES[name]()
        print()


if __name__ == "__main__":
    main()
