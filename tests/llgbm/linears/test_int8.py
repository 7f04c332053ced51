import time
import warnings
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llgbm.linears.int8 import FbgemmProduct, Int8TrainingLinear, Int8Weight, IntMmProduct, int8_product, quantised_rows
from tests.fixtures import in_threads, linear


@given(rows=st.integers(1, 9), columns=st.integers(1, 40), exponent=st.integers(-9, 9), seed=st.integers(0, 99))
def test_a_row_is_off_by_half_a_step_at_most_and_its_scale_is_its_own(
    rows: int, columns: int, exponent: int, seed: int
) -> None:
    x = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 10.0**exponent
    whole, scales = quantised_rows(x)
    assert whole.dtype == torch.int8
    assert (whole.float() * scales - x).abs().le(0.501 * scales).all()
    alone, scale = quantised_rows(x[:1])
    assert torch.equal(alone, whole[:1])
    assert torch.equal(scale, scales[:1])


def test_a_row_of_zeros_stays_one() -> None:
    whole, scales = quantised_rows(torch.zeros(2, 5))
    assert not whole.any()
    assert scales.isfinite().all()


@given(
    kernel=st.sampled_from([IntMmProduct, FbgemmProduct]),
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    tokens=st.integers(1, 20),
    exponent=st.integers(-6, 6),
    seed=st.integers(0, 99),
)
def test_both_kernels_multiply_with_a_scale_for_each_row(
    kernel: type[IntMmProduct | FbgemmProduct], rows: int, columns: int, tokens: int, exponent: int, seed: int
) -> None:
    random = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=random)
    x = torch.randn(tokens, columns, generator=random)
    x[0] *= 10.0**exponent
    actual, expected = kernel(weight)(x), x @ weight.t()
    scale = x.norm(dim=1, keepdim=True) * weight.norm() / rows**0.5
    assert ((actual - expected).abs() <= 0.05 * scale).all()


def test_threads_that_pack_leave_the_filters_of_warnings_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = [Int8Weight.of(linear(4, 8, seed).weight) for seed in range(2)]
    before = list(warnings.filters)
    make = torch._make_per_channel_quantized_tensor
    seconds = iter([0.05, 0.15])  # without a lock, the second thread begins while the first is at it, and ends later

    def slow(*args: Any) -> torch.Tensor:
        time.sleep(next(seconds))
        return make(*args)

    monkeypatch.setattr(torch, "_make_per_channel_quantized_tensor", slow)
    in_threads(FbgemmProduct, weights)
    assert list(warnings.filters) == before


@pytest.mark.parametrize(
    ("vnni", "engine", "kernel"),
    [(True, "fbgemm", IntMmProduct), (False, "fbgemm", FbgemmProduct), (False, "qnnpack", IntMmProduct)],
)
def test_the_kernel_is_the_one_that_is_fast_on_the_processor(
    monkeypatch: pytest.MonkeyPatch, vnni: bool, engine: str, kernel: type
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: vnni)
    monkeypatch.setattr(type(torch.backends.quantized), "supported_engines", [engine], raising=False)
    assert isinstance(int8_product(torch.randn(4, 8)), kernel)


@given(rows=st.integers(1, 40), columns=st.integers(1, 40), tokens=st.integers(1, 20), seed=st.integers(0, 99))
def test_gradient_of_the_input_is_near_that_of_float32_and_the_weight_has_none(
    rows: int, columns: int, tokens: int, seed: int
) -> None:
    module = linear(rows, columns, seed)
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(1, tokens, columns, generator=random).requires_grad_()
    upstream = torch.randn(1, tokens, rows, generator=random)
    (expected,) = torch.autograd.grad(module(x), x, upstream)
    int8 = Int8TrainingLinear(module)
    out = int8(x)
    (actual,) = torch.autograd.grad(out, x, upstream)
    scale = module.weight.norm() / columns**0.5 * upstream.norm(dim=-1).max()
    assert (actual - expected).abs().max() <= 0.05 * scale
    assert actual.dtype == out.dtype == torch.float32
    assert not any(p.requires_grad for p in int8.parameters())


def test_a_token_of_large_magnitude_costs_only_itself_precision() -> None:
    module = Int8TrainingLinear(linear(24, 48, 0))
    x = torch.randn(1, 6, 48, generator=torch.Generator().manual_seed(0))
    before = module(x)
    x[0, 2] *= 1e4
    after = module(x)
    assert torch.equal(after[0, [0, 1, 3, 4, 5]], before[0, [0, 1, 3, 4, 5]])


def test_adding_to_its_output_in_place_leaves_the_gradient_right() -> None:
    """Hooks add in place."""
    module = Int8TrainingLinear(linear(8, 16, 1))
    x = torch.randn(1, 3, 16, generator=torch.Generator().manual_seed(2)).requires_grad_()
    (plain,) = torch.autograd.grad(module(x).sum(), x)
    (added,) = torch.autograd.grad(module(x).mul_(2).add_(1).sum(), x)
    torch.testing.assert_close(added, 2 * plain, rtol=0.02, atol=1e-4)
