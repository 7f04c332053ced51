from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from llgbm.config import LoRASpec, lora_spec, model_spec
from llgbm.errors import AdapterFormatError, AdapterMismatchError
from llgbm.lora import LoRAWeights, combine, zeros
from tests.fixtures import random_lora

TINY = model_spec("tiny")
SPEC = lora_spec("tiny")
SMALL = LoRASpec.for_model(TINY, rank=2, alpha=3.0, targets=("k_proj", "down_proj"), layers=(1,))
FIRST, SECOND = SMALL.names

specs = st.builds(
    LoRASpec,
    rank=st.integers(1, 8),
    alpha=st.floats(0.1, 64),
    modules=st.just(SMALL.modules),
    use_rslora=st.booleans(),
)


def dense(weights: LoRAWeights, name: str) -> Tensor:
    """The product in float64, by definition."""
    spec = weights.spec
    scaling = spec.alpha / (spec.rank**0.5 if spec.use_rslora else spec.rank)
    return scaling * (weights.b[name].double() @ weights.a[name].double())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a, b: a.pop(FIRST), "missing"),
        (lambda a, b: b.pop(FIRST), "missing"),
        (lambda a, b: a.update({"model.layers.0.mlp.up_proj": a[FIRST]}), "extra"),
        (lambda a, b: a.update({FIRST: a[FIRST].T}), "expected"),
        (lambda a, b: b.update({FIRST: b[FIRST][:, :1]}), "expected"),
        (lambda a, b: a.update({FIRST: a[SECOND]}), "expected"),
        (lambda a, b: a.update({FIRST: a[FIRST].int()}), "int32"),
        (lambda a, b: a.update({FIRST: a[FIRST].half()}), "float16"),
        (lambda a, b: b.update({FIRST: b[FIRST].to("meta")}), "meta"),
    ],
)
def test_tensors_that_are_not_those_of_the_spec_are_refused(
    change: Callable[[dict[str, Tensor], dict[str, Tensor]], object], message: str
) -> None:
    good = random_lora(SMALL, 0)
    a, b = dict(good.a), dict(good.b)
    change(a, b)
    with pytest.raises(AdapterFormatError, match=message):
        LoRAWeights(SMALL, a, b)


def test_pairs_follow_the_spec() -> None:
    weights = random_lora(SPEC, 0)
    shuffled = LoRAWeights(SPEC, dict(reversed(list(weights.a.items()))), weights.b)
    assert [name for name, _, _ in shuffled.pairs()] == list(SPEC.names)
    assert all(a is weights.a[name] and b is weights.b[name] for name, a, b in shuffled.pairs())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_bytes_and_dtype(dtype: torch.dtype) -> None:
    weights = random_lora(SPEC, 0)
    other = weights.to(dtype)
    assert other.dtype == dtype
    assert other.num_bytes == sum(t.numel() * t.element_size() for t in other.tensors)
    assert (other is weights) == (dtype == torch.float32)


@given(specs, st.integers(0, 9), st.floats(-3, 3))
def test_the_product_is_linear_in_the_scale(spec: LoRASpec, seed: int, factor: float) -> None:
    weights = random_lora(spec, seed)
    scaled = weights.scaled(factor)
    for name in spec.names:
        torch.testing.assert_close(dense(scaled, name), factor * dense(weights, name), atol=1e-5, rtol=1e-4)
        assert scaled.a[name] is weights.a[name]


@given(specs, st.integers(0, 9))
def test_delta_weight_and_norms_are_those_of_the_dense_product(spec: LoRASpec, seed: int) -> None:
    weights = random_lora(spec, seed)
    norms = weights.product_norms()
    assert list(norms) == list(spec.names)
    for name in spec.names:
        expected = dense(weights, name)
        torch.testing.assert_close(weights.delta_weight(name).double(), expected, atol=1e-5, rtol=1e-4)
        assert norms[name] == pytest.approx(float(expected.norm()), rel=1e-4)


@given(
    st.lists(st.tuples(specs, st.integers(0, 9), st.floats(-2, 2)), min_size=1, max_size=4),
)
def test_combination_is_the_weighted_sum_of_products(parts: list[tuple[LoRASpec, int, float]]) -> None:
    adapters = [random_lora(spec, seed) for spec, seed, _ in parts]
    weights = [weight for _, _, weight in parts]
    combined = combine(adapters, weights)
    assert combined.spec.rank == sum(spec.rank for spec, _, _ in parts)
    for name in SMALL.names:
        expected = sum(w * dense(adapter, name) for w, adapter in zip(weights, adapters, strict=True))
        torch.testing.assert_close(dense(combined, name), expected, atol=1e-4, rtol=1e-4)


def test_combination_needs_a_weight_each_and_the_same_modules() -> None:
    one, other = random_lora(SMALL, 0), random_lora(SPEC, 0)
    for adapters, weights in (([], []), ([one], []), ([one], [1.0, 2.0]), ([one, other], [0.5, 0.5])):
        with pytest.raises(AdapterMismatchError):
            combine(adapters, weights)


def test_zeros_change_nothing() -> None:
    weights = zeros(SPEC, torch.bfloat16)
    assert weights.dtype == torch.bfloat16
    assert set(weights.product_norms().values()) == {0.0}


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("side", ["A", "B"])
def test_one_number_that_is_not_finite_is_found(side: str, bad: float) -> None:
    weights = random_lora(SPEC, 0)
    weights.require_finite()
    (weights.a if side == "A" else weights.b)[SPEC.names[5]][0, -1] = bad
    with pytest.raises(AdapterFormatError, match=f"lora_{side} of {SPEC.names[5]}"):
        weights.require_finite()


def test_detach_keeps_the_numbers_and_drops_the_graph() -> None:
    grown = random_lora(SMALL, 0).map(lambda t: t.requires_grad_() * 1)
    still = grown.detach()
    assert all(torch.equal(still.a[n], grown.a[n]) and not still.a[n].requires_grad for n in SMALL.names)
    assert all(grown.a[n].requires_grad for n in SMALL.names)


def test_map_may_not_change_shapes() -> None:
    with pytest.raises(AdapterFormatError, match="expected"):
        random_lora(SMALL, 0).map(lambda t: t.T)
