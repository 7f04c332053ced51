"""The head depends on the products BA only, not on factorisation, rank or order of rows; and it can learn."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llgbm.config import LoRASpec, lora_spec, model_spec
from llgbm.errors import AdapterMismatchError, ConfigError
from llgbm.lora import LoRAWeights, combine, zeros
from llgbm.matching.delta_head import DeltaHead, DeltaHeadConfig
from tests.fixtures import random_lora

TINY = model_spec("tiny")
SPEC = LoRASpec.for_model(TINY, rank=4, alpha=8.0)
SMALL = DeltaHeadConfig(sketch_size=4, output_rank=8, correction_size=8)


def head(seed: int = 0) -> DeltaHead:
    made = DeltaHead(TINY, SPEC, [0, 1], SMALL, seed=seed)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)) * 0.3)
    return made


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 100))
def test_equal_products_have_equal_predictions(seed: int) -> None:
    adapter = random_lora(SPEC, seed)
    mixing = torch.randn(4, 4, generator=torch.Generator().manual_seed(seed)) + 3 * torch.eye(4)
    inverse = torch.linalg.inv(mixing)
    order = torch.randperm(4, generator=torch.Generator().manual_seed(seed))
    others = [
        LoRAWeights(
            SPEC, {n: mixing @ t for n, t in adapter.a.items()}, {n: t @ inverse for n, t in adapter.b.items()}
        ),
        LoRAWeights(SPEC, {n: t[order] for n, t in adapter.a.items()}, {n: t[:, order] for n, t in adapter.b.items()}),
        combine([adapter, zeros(SPEC)], [1.0, 1.0]),
    ]
    predicted = head()([adapter, *others])
    assert predicted.shape == (4, 2, 64)
    for other in predicted[1:]:
        torch.testing.assert_close(other, predicted[0], rtol=1e-3, atol=1e-3)


def test_the_empty_adapter_moves_nothing() -> None:
    assert torch.equal(head()([zeros(SPEC)]), torch.zeros(1, 2, 64))


def test_linear_part_adds_up() -> None:
    made = head()
    with torch.no_grad():
        made.write.zero_()
    one, two = random_lora(SPEC, 1), random_lora(SPEC, 2)
    both = made([combine([one, two], [0.5, -2.0])])[0]
    apart = made([one, two])
    torch.testing.assert_close(both, 0.5 * apart[0] - 2.0 * apart[1], rtol=1e-3, atol=1e-3)


def test_it_reads_the_tensors_of_every_module() -> None:
    made, adapter = head(), random_lora(SPEC, 1)
    before = made([adapter])
    for name in SPEC.names:
        b = dict(adapter.b)
        b[name] = b[name] + 1.0
        assert not torch.allclose(made([LoRAWeights(SPEC, adapter.a, b)]), before)


def test_modules_that_an_adapter_lacks_count_as_zero() -> None:
    made = head()
    spec = LoRASpec.for_model(TINY, rank=2, targets=["v_proj", "down_proj"], layers=[1])
    partial = random_lora(spec, 1)
    full = zeros(LoRASpec(2, spec.alpha, SPEC.modules))
    filled = LoRAWeights(full.spec, {**full.a, **partial.a}, {**full.b, **partial.b})
    torch.testing.assert_close(made([partial]), made([filled]))


def test_a_batch_is_its_rows() -> None:
    made = head()
    adapters = [random_lora(LoRASpec.for_model(TINY, rank=r), r) for r in (1, 4, 7)]
    together = made(adapters)
    for i, adapter in enumerate(adapters):
        torch.testing.assert_close(together[i], made([adapter])[0], rtol=1e-4, atol=1e-5)


def test_frozen_prediction_is_the_same_and_trains_the_adapter_only() -> None:
    made, adapter = head(), random_lora(SPEC, 1).map(lambda t: t.requires_grad_())
    predicted = made.predict_frozen([adapter])
    torch.testing.assert_close(predicted, made([adapter]))
    predicted.square().sum().backward()
    assert all(p.grad is None for p in made.parameters())
    assert all(t.grad is not None and float(t.grad.abs().sum()) > 0 for t in adapter.tensors)


def test_it_learns_a_map_that_it_can_hold() -> None:
    """One head learns another head's deltas from 48 pairs, well enough for unseen pairs."""
    target, learner = head(3), DeltaHead(TINY, SPEC, [0, 1], SMALL)
    with torch.no_grad():
        target.write.zero_()
        for (right, left), (other_right, other_left) in zip(learner.factors(), target.factors(), strict=True):
            right.copy_(other_right)
            left.copy_(other_left)
    pairs = [random_lora(SPEC, i) for i in range(64)]
    with torch.no_grad():
        wanted = target(pairs)
        learner.output_scale.copy_(wanted.square().mean((0, 2)).sqrt())
        learner.sketch_scale.copy_(learner.sketch(pairs).square().mean((0, 2)).sqrt())
    optimiser = torch.optim.Adam(learner.parameters(), lr=1e-2)
    errors = []
    for step in range(120):
        predicted = learner(pairs if step == 119 else pairs[:48])
        error = (predicted - wanted[: len(predicted)]).square().sum((1, 2)) / wanted[: len(predicted)].square().sum(
            (1, 2)
        )
        optimiser.zero_grad()
        error[:48].mean().backward()
        optimiser.step()
        errors.append(error.detach())
    assert float(errors[0].mean()) > 0.9
    assert float(errors[-1][:48].mean()) < 0.05
    cosine = torch.cosine_similarity(predicted[48:].detach(), wanted[48:], dim=-1)
    assert float(cosine.mean()) > 0.3


def test_same_seed_same_head_and_the_global_state_is_left_alone() -> None:
    state = torch.get_rng_state()
    one, two, three = (DeltaHead(TINY, SPEC, [1], SMALL, seed=s) for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(one.gate, three.gate)


def test_it_stays_below_15_million_parameters_on_the_05b() -> None:
    model = model_spec("qwen2.5-0.5b")
    made = DeltaHead(model, lora_spec("qwen2.5-0.5b"), [5, 11, 17, 23])
    assert sum(p.numel() for p in made.parameters()) < 15e6


def test_what_it_cannot_read_is_refused() -> None:
    narrow = DeltaHead(TINY, LoRASpec.for_model(TINY, targets=["q_proj"]), [1], SMALL)
    with pytest.raises(AdapterMismatchError, match="does not read"):
        narrow([random_lora(SPEC, 1)])
    with pytest.raises(AdapterMismatchError, match="no adapter"):
        narrow([])
    for layers in ([], [2], [-1]):
        with pytest.raises(ConfigError, match="layers"):
            DeltaHead(TINY, SPEC, layers, SMALL)
    with pytest.raises(ConfigError, match="sketch_size"):
        DeltaHead(TINY, SPEC, [1], DeltaHeadConfig(sketch_size=33))
    with pytest.raises(ConfigError, match="output_rank"):
        DeltaHeadConfig(output_rank=0)
