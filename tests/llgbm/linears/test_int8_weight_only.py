"""The weight-only int8 Linear against a Linear with the dequantised weight."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from llgbm.linears import int8_weight_only
from llgbm.linears.int8 import Int8Weight
from llgbm.linears.int8_weight_only import Int8WeightOnlyLinear, weight_only_group


def weight_of(linear: nn.Linear) -> Int8Weight:
    return Int8Weight.of(linear.weight.detach())


def dequantised(linear: nn.Linear) -> nn.Linear:
    rows, scales = weight_of(linear)
    other = nn.Linear(linear.in_features, linear.out_features, bias=linear.bias is not None)
    with torch.no_grad():
        other.weight.copy_(rows * scales[:, None])
        if linear.bias is not None:
            other.bias.copy_(linear.bias)
    return other


def output_and_gradient(module: nn.Module, x: Tensor, upstream: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    out = module(x)
    out.backward(upstream.to(out.dtype))
    assert x.grad is not None
    return out.detach(), x.grad


@pytest.mark.parametrize("most", [1 << 23, 16 * 7, 1])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 0.01)])
@pytest.mark.parametrize("bias", [True, False])
def test_output_and_gradient_are_those_of_the_dequantised_weight(
    monkeypatch: pytest.MonkeyPatch, most: int, dtype: torch.dtype, tolerance: float, bias: bool
) -> None:
    monkeypatch.setattr(int8_weight_only, "_MOST_CONVERTED", most)  # the last piece of 7 rows is smaller
    torch.manual_seed(0)
    linear = nn.Linear(16, 24, bias=bias)
    x, upstream = torch.randn(2, 5, 16), torch.randn(2, 5, 24)
    module = Int8WeightOnlyLinear(weight_of(linear), linear.bias, dtype)
    expected = output_and_gradient(dequantised(linear), x, upstream)
    found = output_and_gradient(module, x.to(dtype), upstream)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == dtype
        assert one.shape == other.shape
        assert (one.float() - other).norm() <= tolerance * other.norm()


def test_the_rows_of_a_group_are_used_in_place() -> None:
    linears = [nn.Linear(8, 3, bias=False), nn.Linear(8, 5)]
    rows = torch.randint(-127, 128, (8, 8), dtype=torch.int8)
    weight, bias = Int8Weight(rows, torch.rand(8) + 0.1), torch.randn(8)
    x = torch.randn(4, 8)
    modules = weight_only_group(linears, weight, bias, torch.float32)
    before = torch.cat([module(x) for module in modules], dim=1)
    torch.testing.assert_close(before, x @ (rows * weight.scales[:, None]).t() + bias)
    rows.zero_()
    torch.testing.assert_close(torch.cat([module(x) for module in modules], dim=1), bias.expand(4, -1))
