"""The round trip is exact for any rank, target set and token size; index and mask describe each token."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llgbm.config import TARGET_MODULES, LoRASpec, lora_spec, model_spec
from llgbm.errors import AdapterMismatchError, ConfigError
from llgbm.lora import LoRAWeights
from llgbm.matching.weight_tokens import TokenLayout, TokenNormalizer, detokenize, tokenize
from tests.fixtures import random_lora, same_weights

TINY = model_spec("tiny")

specs = st.builds(
    lambda rank, targets, layers: LoRASpec.for_model(TINY, rank=rank, targets=targets, layers=layers),
    st.integers(1, 9),
    st.lists(st.sampled_from(TARGET_MODULES), min_size=1, unique=True),
    st.lists(st.integers(0, TINY.num_layers - 1), min_size=1, unique=True),
)
token_sizes = st.integers(1, 200)


def unscaled(spec: LoRASpec) -> TokenNormalizer:
    """Tokens are the raw weights."""
    return TokenNormalizer({f"{name}.lora_{side}": 1.0 for name in spec.names for side in "AB"})


def scaled(adapter: LoRAWeights, a: float, b: float) -> LoRAWeights:
    return LoRAWeights(adapter.spec, {n: t * a for n, t in adapter.a.items()}, {n: t * b for n, t in adapter.b.items()})


@settings(max_examples=30, deadline=None)
@given(specs, token_sizes, st.floats(1e-6, 1e6), st.floats(1e-6, 1e6), st.integers(0, 99))
def test_round_trip_is_the_identity(spec: LoRASpec, size: int, a: float, b: float, seed: int) -> None:
    adapters = [scaled(random_lora(spec, seed + i), a, b) for i in range(2)]
    normalizer = TokenNormalizer.fit([random_lora(spec, seed + 9), adapters[0]])
    layout = TokenLayout(spec, size)
    tokens = tokenize(adapters, layout, normalizer)
    assert tokens.shape == (2, layout.num_tokens, size)
    assert tokens.dtype == torch.float32
    for before, after in zip(adapters, detokenize(tokens, layout, normalizer), strict=True):
        assert same_weights(before, after)  # exact, so the relative error is 0, not only below 1e-6


def test_round_trip_is_the_identity_for_an_adapter_of_the_small_base() -> None:
    spec = lora_spec("qwen2.5-0.5b")
    adapter = random_lora(spec, 0, size=0.02)
    layout, normalizer = TokenLayout(spec), TokenNormalizer.fit([adapter])
    (after,) = detokenize(tokenize([adapter], layout, normalizer), layout, normalizer)
    assert len(spec.names) == 168
    assert same_weights(adapter, after)


@settings(max_examples=30, deadline=None)
@given(specs, token_sizes)
def test_mask_covers_every_weight_once_and_padding_is_zero(spec: LoRASpec, size: int) -> None:
    layout = TokenLayout(spec, size)
    ones = random_lora(spec, 0).map(torch.ones_like)
    tokens = tokenize([ones], layout, unscaled(spec))[0]
    assert int(layout.mask.sum()) == spec.num_parameters
    assert torch.equal(tokens.bool(), layout.mask)


@settings(max_examples=20, deadline=None)
@given(specs, token_sizes)
def test_index_says_where_a_token_comes_from(spec: LoRASpec, size: int) -> None:
    """Every weight is a code of its position; each token holds the codes of its index."""
    layout = TokenLayout(spec, size)
    index = layout.index
    assert {len(t) for t in index} == {layout.num_tokens}
    names = {(m.layer, TARGET_MODULES.index(m.target)): m for m in spec.modules}
    adapter = random_lora(spec, 3)
    tokens = tokenize([adapter], layout, unscaled(spec))[0]
    for t in range(0, layout.num_tokens, max(1, layout.num_tokens // 40)):
        module = names[int(index.layer[t]), int(index.target[t])]
        rows = adapter.a[module.name] if index.side[t] == 0 else adapter.b[module.name].t()
        start = int(index.chunk[t]) * size
        expected = rows[int(index.row[t]), start : start + size]
        assert torch.equal(tokens[t, : len(expected)], expected)


def test_normaliser_brings_every_side_to_unit_size_by_powers_of_two() -> None:
    spec = LoRASpec.for_model(TINY, rank=4)
    adapters = [scaled(random_lora(spec, i), 1e-3, 40.0) for i in range(3)]
    normalizer = TokenNormalizer.fit(iter(adapters))
    layout = TokenLayout(spec, 32)
    tokens = tokenize(adapters, layout, normalizer)
    for side in (0, 1):
        chosen = tokens[:, layout.index.side == side][:, layout.mask[layout.index.side == side]]
        assert 0.65 < float(chosen.square().mean().sqrt()) < 1.5
    assert all(math.frexp(s)[0] == 0.5 for s in normalizer.scales.values())


def test_a_zero_side_keeps_scale_one() -> None:
    spec = LoRASpec.for_model(TINY, rank=2)
    normalizer = TokenNormalizer.fit([scaled(random_lora(spec, 0), 1.0, 0.0)])
    assert {normalizer.scales[f"{n}.lora_B"] for n in spec.names} == {1.0}


def test_half_precision_adapters_come_back_exactly() -> None:
    spec = LoRASpec.for_model(TINY, rank=2)
    adapter = random_lora(spec, 1).to(torch.float16)
    layout, normalizer = TokenLayout(spec, 48), TokenNormalizer.fit([adapter])
    back = detokenize(tokenize([adapter], layout, normalizer), layout, normalizer)[0].to(torch.float16)
    assert same_weights(adapter, back)


def test_gradients_pass_both_ways() -> None:
    spec = LoRASpec.for_model(TINY, rank=2)
    layout, normalizer = TokenLayout(spec, 48), TokenNormalizer.fit([random_lora(spec, 1)])
    adapter = random_lora(spec, 2).map(lambda t: t.requires_grad_())
    tokenize([adapter], layout, normalizer).square().sum().backward()
    assert all(t.grad is not None and bool(t.grad.abs().sum() > 0) for t in adapter.tensors)
    tokens = torch.randn(1, layout.num_tokens, 48, requires_grad=True)
    made = detokenize(tokens, layout, normalizer)[0]
    torch.stack([t.square().sum() for t in made.tensors]).sum().backward()
    assert tokens.grad is not None
    assert torch.equal(tokens.grad[0] != 0, layout.mask)


def test_what_does_not_fit_is_refused() -> None:
    spec, other = LoRASpec.for_model(TINY, rank=2), LoRASpec.for_model(TINY, rank=3)
    layout, normalizer = TokenLayout(spec, 48), unscaled(spec)
    with pytest.raises(AdapterMismatchError, match="rank 3"):
        tokenize([random_lora(other, 0)], layout, normalizer)
    with pytest.raises(AdapterMismatchError, match="no adapter"):
        tokenize([], layout, normalizer)
    with pytest.raises(AdapterMismatchError, match="this layout makes"):
        detokenize(torch.zeros(1, 3, 48), layout, normalizer)
    narrow = unscaled(LoRASpec.for_model(TINY, rank=2, targets=["q_proj"]))
    with pytest.raises(AdapterMismatchError, match="no scale for"):
        tokenize([random_lora(spec, 0)], layout, narrow)
    with pytest.raises(AdapterMismatchError, match="at least one"):
        TokenNormalizer.fit([])
    with pytest.raises(ConfigError, match="token_size"):
        TokenLayout(spec, 0)
