import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from llgbm.linears.frozen_linear import BFloat16Linear, int8_group, product_of_all
from llgbm.linears.linear_group import LinearGroup

NAMES = ("q", "k", "v")


def linears(count: int) -> list[nn.Linear]:
    torch.manual_seed(0)
    return [nn.Linear(16, out, bias=out != 8).requires_grad_(False) for out in (24, 8, 40)[:count]]


@pytest.mark.parametrize("storage", ["float32", "bfloat16", "int8", "mixed"])
@pytest.mark.parametrize("count", [1, 3])
@given(rows=st.integers(1, 9), seed=st.integers(0, 99))
def test_the_outputs_are_those_of_the_modules_side_by_side(storage: str, count: int, rows: int, seed: int) -> None:
    whole = linears(count)
    stored: dict[str, list[nn.Module]] = {
        "float32": [*whole],
        "bfloat16": [BFloat16Linear(linear) for linear in whole],
        "int8": [*int8_group(whole)],
        "mixed": [*int8_group(whole)[:-1], whole[-1]],
    }
    modules = stored[storage]
    group = LinearGroup(dict(zip(NAMES, modules, strict=False)))
    x = torch.randn(rows, 16, generator=torch.Generator().manual_seed(seed))
    with torch.inference_mode():
        expected = torch.cat([module(x) for module in modules], dim=1)
        assert torch.equal(group(x), expected)
        total = torch.ones_like(expected)
        group.add_to(total, x)
    torch.testing.assert_close(total, expected + 1)
    assert (group.in_features, group.out_features) == (16, (24, 8, 40)[:count])


def test_only_all_modules_of_an_int8_product_in_their_order_are_one_product() -> None:
    modules, others = int8_group(linears(3)), int8_group(linears(3))
    assert product_of_all(modules) is not None
    parts: list[list[nn.Module]] = [
        [*modules[:2]],
        [*modules[::-1]],
        [modules[0], others[1], modules[2]],
        [nn.Identity()],
    ]
    for part in parts:
        assert product_of_all(part) is None


def test_an_int8_product_is_added_in_the_dtype_of_the_sum() -> None:
    group = LinearGroup(dict(zip(NAMES, int8_group(linears(3)), strict=True)))
    x, total = torch.randn(2, 16), torch.ones(2, 72, dtype=torch.bfloat16)
    group.add_to(total, x.bfloat16())
    assert total.dtype == torch.bfloat16
    torch.testing.assert_close(total.float(), group(x) + 1, atol=0.05, rtol=0.02)


def test_outputs_of_int8_may_be_changed_in_place() -> None:
    modules = int8_group(linears(3))
    group, x = LinearGroup(dict(zip(NAMES, modules, strict=True))), torch.randn(2, 16)
    first = group(x).clone()
    group(x).zero_()
    assert torch.equal(group(x), first)
