"""Linears with the same input as one product: q, k and v; o; gate and up; down."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from llgbm.linears.frozen_linear import product_of_all


class LinearGroup:
    """One product for Linears with the same input; their outputs lie side by side.

    Linears of one int8 product (`int8_group`) are multiplied by one call of it, and hooks on them do not run. Others
    are called one by one, as modules.

    Args:
        linears: name -> Linear of any storage, in the order of the outputs.

    Attributes:
        names: of the Linears.
        in_features: size of the input.
        out_features: size of each output.
    """

    def __init__(self, linears: Mapping[str, nn.Module]) -> None:
        modules: list[nn.Module] = list(linears.values())
        sizes = [(int(m.in_features), int(m.out_features)) for m in modules]  # type: ignore[arg-type]
        self.names = tuple(linears)
        self.in_features, self.out_features = sizes[0][0], tuple(out for _, out in sizes)
        self._modules, self._product = modules, product_of_all(modules)

    def __call__(self, x: Tensor) -> Tensor:
        """(rows, in_features) -> (rows, sum of out_features), which the caller may change in place."""
        if self._product is not None:
            return self._product(x)
        outputs: list[Tensor] = [module(x) for module in self._modules]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)

    def add_to(self, total: Tensor, x: Tensor) -> None:
        """Add the outputs for `x` (rows, in_features) to `total` (rows, sum of out_features), in place."""
        if self._product is not None:
            self._product.add_to(total, x)
        else:
            total.add_(self(x))
