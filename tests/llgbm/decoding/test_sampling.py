import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import MinPLogitsWarper, RepetitionPenaltyLogitsProcessor, TopKLogitsWarper, TopPLogitsWarper

from llgbm.decoding.sampling import SamplingParams, adjusted, log_probabilities, make_generator, sample
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
        ("top_p", -0.1),
        ("top_p", 1.1),
        ("top_p", math.nan),
        ("top_k", -1),
        ("min_p", 1.5),
        ("min_p", math.nan),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", math.inf),
        ("presence_penalty", math.nan),
        ("frequency_penalty", math.inf),
        ("logit_bias", ((-1, 1.0),)),
        ("logit_bias", ((1, math.nan),)),
        ("seed", 2**63),
        ("logprobs", -1),
        ("logprobs", 21),
    ],
)
def test_values_out_of_range_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=name):
        SamplingParams(**{name: value})


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


@pytest.mark.parametrize(
    "params", [SamplingParams(temperature=1.0, top_p=0.999), SamplingParams(temperature=1.0, top_k=60)]
)
def test_last_bits_of_nearly_equal_logits_do_not_change_a_draw(params: SamplingParams) -> None:
    likely = (random_logits(60, 1.0, seed=0).clamp(-1, 1) * 10).round() / 10  # many are equal, and all are kept
    logits = torch.cat([likely, torch.full((140,), -20.0)])
    other = logits + 1e-6 * random_logits(200, 1.0, seed=1)
    assert not torch.equal(logits.argsort(descending=True)[:60], other.argsort(descending=True)[:60])
    for seed in range(300):
        assert sample(logits, params, make_generator(seed)) == sample(other, params, make_generator(seed))


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


@given(vectors, st.integers(0, 99))
def test_a_nucleus_of_nothing_is_greedy(logits: Tensor, seed: int) -> None:
    token = sample(logits, SamplingParams(temperature=1.0, top_p=0.0), make_generator(seed))
    assert logits[token] >= logits.max() - 1e-4


@pytest.mark.parametrize(
    ("top_k", "min_p", "top_p"),
    [
        (1, 0.0, 1.0),
        (5, 0.0, 1.0),
        (0, 0.2, 1.0),
        (8, 0.05, 1.0),
        (6, 0.0, 0.7),
        (0, 0.1, 0.8),
        (9, 0.1, 0.6),
        (500, 0, 1),
    ],
)
def test_draws_are_from_what_transformers_keeps(top_k: int, min_p: float, top_p: float) -> None:
    """min-p, then top-k, then top-p of what they left, after the temperature: the order of vLLM."""
    temperature = 1.3
    logits = random_logits(40, 2.0, seed=3)
    params = SamplingParams(temperature=temperature, top_k=top_k, min_p=min_p, top_p=top_p)
    scores = logits[None] / temperature
    ids: Any = None
    if min_p:
        scores = MinPLogitsWarper(min_p)(ids, scores)
    if top_k:
        scores = TopKLogitsWarper(top_k)(ids, scores)
    scores = TopPLogitsWarper(top_p)(ids, scores)[0]
    expected = scores.softmax(-1)
    generator, draws = make_generator(5), 4_000
    counts = torch.bincount(torch.tensor([sample(logits, params, generator) for _ in range(draws)]), minlength=40)
    assert not counts[expected == 0].any()
    spread = (expected * (1 - expected) / draws).sqrt()
    assert bool(((counts / draws - expected).abs() <= 4.5 * spread).all())


def test_more_than_the_first_guess_may_be_drawn_from() -> None:
    logits = random_logits(5000, 0.1, seed=2)
    order = logits.argsort(descending=True)
    params = SamplingParams(temperature=1.0, top_k=3000)
    generator = make_generator(0)
    draws = {sample(logits, params, generator) for _ in range(400)}
    assert draws <= set(order[:3000].tolist())
    assert draws & set(order[1024:].tolist())


@given(vectors, st.floats(0.2, 3), st.lists(st.integers(0, 49), max_size=9), st.lists(st.integers(0, 49), max_size=9))
def test_repetition_is_penalised_as_by_transformers(
    logits: Tensor, penalty: float, prompt: list[int], output: list[int]
) -> None:
    prompt, output = ([token % len(logits) for token in tokens] for tokens in (prompt, output))
    actual = adjusted(logits, SamplingParams(repetition_penalty=penalty), prompt, output)
    ids = torch.tensor([[*prompt, *output]], dtype=torch.long)
    expected = RepetitionPenaltyLogitsProcessor(penalty)(ids, logits[None].clone())[0] if ids.numel() else logits
    assert torch.allclose(actual, expected)


def test_presence_counts_once_and_frequency_each_time_in_the_answer_alone() -> None:
    logits = torch.zeros(6)
    params = SamplingParams(presence_penalty=0.5, frequency_penalty=0.25, logit_bias=((3, 2.0), (0, -1.0)))
    assert adjusted(logits, params, [5, 5], [1, 2, 1]).tolist() == [-1.0, -1.0, -0.75, 2.0, 0.0, 0.0]
    assert adjusted(logits, SamplingParams(presence_penalty=0.5), [5], []) is logits
    assert logits.tolist() == [0.0] * 6
