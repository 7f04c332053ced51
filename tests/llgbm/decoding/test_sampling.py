import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from llgbm.decoding.sampling import SamplingParams, log_probabilities, make_generator, sample
from llgbm.errors import ConfigError

vectors = st.lists(st.floats(-8, 8, width=32), min_size=1, max_size=50).map(torch.tensor)
hot = st.floats(0.05, 5)


def random_logits(size: int, spread: float, seed: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)) * spread


def nucleus(logits: Tensor, params: SamplingParams) -> set[int]:
    """By definition: the likeliest tokens, until their probabilities reach top_p."""
    probabilities = (logits.double() / params.temperature).softmax(-1)
    total, kept = 0.0, set()
    for token in probabilities.argsort(descending=True).tolist():
        if total >= params.top_p:
            break
        total += float(probabilities[token])
        kept.add(token)
    return kept


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", 0),
        ("temperature", -0.1),
        ("temperature", math.inf),
        ("temperature", math.nan),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_p", math.nan),
        ("seed", 2**63),
        ("logprobs", -1),
        ("logprobs", 21),
    ],
)
def test_values_out_of_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=name):
        SamplingParams(**{name: value})  # type: ignore[arg-type]


@given(vectors, hot, st.integers(-(2**63), 2**63 - 1))
def test_the_same_seed_gives_the_same_draws(logits: Tensor, temperature: float, seed: int) -> None:
    params = SamplingParams(temperature=temperature, seed=seed)
    one, other = make_generator(seed), make_generator(seed)
    assert [sample(logits, params, one) for _ in range(5)] == [sample(logits, params, other) for _ in range(5)]


def test_without_a_seed_draws_are_fresh() -> None:
    logits, params = torch.zeros(1000), SamplingParams(temperature=1.0)
    draws = {tuple(sample(logits, params, g) for _ in range(4)) for g in (make_generator(None) for _ in range(3))}
    assert len(draws) == 3


@pytest.mark.parametrize("top_p", [1.0, 0.9])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_have_the_right_frequencies(temperature: float, top_p: float) -> None:
    logits = random_logits(12, 1.5, seed=0)
    params = SamplingParams(temperature=temperature, top_p=top_p)
    generator, draws = make_generator(1), 4_000
    counts = torch.zeros(12)
    for _ in range(draws):
        counts[sample(logits, params, generator)] += 1
    expected = (logits / temperature).softmax(-1)
    kept = nucleus(logits, params)
    expected = torch.tensor([float(p) if i in kept else 0.0 for i, p in enumerate(expected)])
    expected /= expected.sum()
    spread = (expected * (1 - expected) / draws).sqrt()
    assert bool(((counts / draws - expected).abs() <= 4.5 * spread).all())


@given(vectors, hot, st.floats(0.01, 1), st.integers(0, 99))
def test_draws_stay_in_the_nucleus(logits: Tensor, temperature: float, top_p: float, seed: int) -> None:
    params = SamplingParams(temperature=temperature, top_p=top_p)
    # rounding decides about a token whose cumulative probability is exactly top_p
    wider = SamplingParams(temperature=temperature, top_p=min(1.0, top_p + 1e-6))
    generator = make_generator(seed)
    probabilities = (logits / temperature).softmax(-1)
    least = min(float(probabilities[t]) for t in nucleus(logits, wider))
    assert all(probabilities[sample(logits, params, generator)] >= least * 0.999 for _ in range(5))


def test_a_nucleus_beyond_the_first_guess_is_found() -> None:
    logits = random_logits(5000, 0.1, seed=2)
    params = SamplingParams(temperature=1.0, top_p=0.5)
    kept, generator = nucleus(logits, params), make_generator(0)
    assert len(kept) > 2000
    draws = {sample(logits, params, generator) for _ in range(400)}
    assert draws <= kept
    order = logits.argsort(descending=True)
    assert draws & set(order[1024:].tolist())


@given(vectors, st.floats(1e-6, 1e-3), st.integers(0, 99))
def test_a_tiny_temperature_is_greedy(logits: Tensor, temperature: float, seed: int) -> None:
    token = sample(logits, SamplingParams(temperature=temperature), make_generator(seed))
    assert logits[token] >= logits.max() - 0.05


@given(vectors, st.data())
def test_log_probabilities_are_those_of_the_plain_softmax(logits: Tensor, data: st.DataObject) -> None:
    token = data.draw(st.integers(0, len(logits) - 1))
    count = data.draw(st.integers(0, len(logits)))
    chosen, best = log_probabilities(logits, token, count)
    expected = logits.double().softmax(-1).log()
    assert chosen == pytest.approx(float(expected[token]), abs=1e-4)
    assert [v for _, v in best] == pytest.approx(expected.sort(descending=True).values[:count].tolist(), abs=1e-4)
    assert all(v == pytest.approx(float(expected[t]), abs=1e-4) for t, v in best)
    assert len({t for t, _ in best}) == count
