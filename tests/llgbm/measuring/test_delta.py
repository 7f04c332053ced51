"""Deltas do not depend on packing, pass gradients to every A and B, and are refused on other probes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from llgbm.base import Base, load_base
from llgbm.config import LoRASpec
from llgbm.delta import (
    Activation,
    DeltaMeter,
    activations,
    compute_adapter_delta,
    compute_base_activation,
)
from llgbm.errors import AdapterMismatchError, CacheMismatchError, ConfigError
from llgbm.functional import FunctionalLoRA
from llgbm.lora import LoRAWeights, zeros
from llgbm.measuring.probe_encoding import encode_probes
from llgbm.probes import ProbeSet, create_mixed_probes
from tests.fixtures import random_lora

PROBES = create_mixed_probes(7, max_length=300)
RAW = replace(PROBES, chat=False)


def adapter(base: Base, seed: int, *, rank: int = 4) -> LoRAWeights:
    return random_lora(LoRASpec.for_model(base.spec, rank=rank, alpha=8.0), seed)


def alone(base: Base, ids: list[int], layer: int, weights: LoRAWeights | None) -> Tensor:
    """Reference: one sequence without packing, with the hidden states of transformers."""
    with torch.no_grad(), FunctionalLoRA(base.model).applied([weights]):
        out = base.model.get_submodule("model")(input_ids=torch.tensor([ids]), output_hidden_states=True)
    states: Tensor = out.hidden_states[layer + 1][0, -1]
    return states


@pytest.mark.parametrize("probes", [PROBES, RAW], ids=["chat", "raw"])
def test_packed_and_alone_agree(tiny_base: Base, probes: ProbeSet) -> None:
    """Packing changes no delta: at most 1e-5 between one probe alone and all together."""
    weights = [adapter(tiny_base, 1), None, adapter(tiny_base, 2, rank=2)]
    ids = encode_probes(tiny_base.tokenizer, probes)
    together = activations(tiny_base, ids, [0], weights=weights)
    assert together.shape == (3, 7, 1, 64)
    for i, weight in enumerate(weights):
        for j, sequence in enumerate(ids):
            reference = alone(tiny_base, sequence, 0, weight)
            difference = torch.linalg.vector_norm(together[i, j, 0] - reference)
            assert float(difference / torch.linalg.vector_norm(reference)) < 1e-5
            single = activations(tiny_base, [sequence], [0], weights=[weight])[0, 0, 0]
            torch.testing.assert_close(single, reference, rtol=1e-5, atol=1e-5)


def test_the_last_layer_is_read_before_the_final_norm(tiny_base: Base) -> None:
    ids = encode_probes(tiny_base.tokenizer, PROBES)[:1]
    states = activations(tiny_base, ids)[0, 0, 0]
    normed = tiny_base.model.get_submodule("model.norm")(states)
    torch.testing.assert_close(normed, alone(tiny_base, ids[0], 1, None), rtol=1e-4, atol=1e-5)


def test_many_probes_are_split_into_packs(tiny_base: Base) -> None:
    probes = create_mixed_probes(60, chat=False, max_length=300)
    ids = encode_probes(tiny_base.tokenizer, probes)
    assert sum(map(len, ids)) > 1024
    states = activations(tiny_base, ids, [0, 1])[0]
    assert states.shape == (60, 2, 64)
    for j in (0, 29, 59):
        torch.testing.assert_close(states[j, 0], alone(tiny_base, ids[j], 0, None), rtol=1e-4, atol=1e-5)


def test_same_probes_in_another_order_give_the_same_vectors(tiny_base: Base) -> None:
    back = replace(PROBES, texts=PROBES.texts[::-1])
    one = compute_base_activation(tiny_base, PROBES).values
    two = compute_base_activation(tiny_base, back).values
    torch.testing.assert_close(one, two.flip(0), rtol=1e-4, atol=1e-5)


def test_empty_adapter_has_no_delta_and_scale_matters(tiny_base: Base) -> None:
    meter = DeltaMeter(tiny_base, PROBES, [0, 1])
    weights = adapter(tiny_base, 3)
    nothing, one, two = meter.deltas([zeros(weights.spec), weights, weights.scaled(2.0)])
    assert float(nothing.abs().max()) < 1e-5
    assert float(one.norm()) > 0.1
    assert float(two.norm()) > 1.3 * float(one.norm())


def test_every_a_and_b_gets_a_gradient(tiny_base: Base) -> None:
    weights = [adapter(tiny_base, s).map(lambda t: t.requires_grad_()) for s in (1, 2)]
    deltas = DeltaMeter(tiny_base, PROBES, [0, 1]).deltas(weights)
    deltas.square().mean().backward()
    for weight in weights:
        for name, a, b in weight.pairs():
            for tensor in (a, b):
                assert tensor.grad is not None, name
                assert bool(torch.isfinite(tensor.grad).all()), name
                assert float(tensor.grad.abs().sum()) > 0, name
    assert all(p.grad is None for p in tiny_base.model.parameters())


def test_gradient_is_the_slope(tiny_base: Base) -> None:
    weights, direction = adapter(tiny_base, 1), adapter(tiny_base, 2)
    meter = DeltaMeter(tiny_base, create_mixed_probes(3, max_length=300))
    step = torch.zeros((), requires_grad=True)
    moved = LoRAWeights(weights.spec, weights.a, {n: t + step * direction.b[n] for n, t in weights.b.items()})
    slope = torch.autograd.grad(meter.deltas([moved]).square().mean(), step)[0]

    def value(s: float) -> float:
        there = LoRAWeights(weights.spec, weights.a, {n: t + s * direction.b[n] for n, t in weights.b.items()})
        return float(meter.deltas([there]).double().square().mean())

    assert float(slope.detach()) == pytest.approx((value(1e-2) - value(-1e-2)) / 2e-2, rel=2e-2)


def test_no_logits_are_computed(tiny_base: Base) -> None:
    calls: list[object] = []
    handle = tiny_base.model.get_submodule("lm_head").register_forward_hook(lambda *a: calls.append(a))
    try:
        compute_base_activation(tiny_base, PROBES)
    finally:
        handle.remove()
    assert calls == []


def test_adapter_delta_equals_what_the_meter_gives(tiny_base: Base) -> None:
    weights = adapter(tiny_base, 5)
    activation = compute_base_activation(tiny_base, PROBES, [0, 1])
    delta = compute_adapter_delta(tiny_base, weights, PROBES, activation)
    meter = DeltaMeter(tiny_base, PROBES, [0, 1], activation)
    assert delta.measurement == meter.measurement
    assert not delta.values.requires_grad
    torch.testing.assert_close(delta.values, meter.deltas([weights])[0])
    torch.testing.assert_close(delta.mean, delta.values.mean(0))


def test_student_and_teacher_on_different_probes_or_template_are_refused(tiny_base: Base, tiny_base_path: Path) -> None:
    activation = compute_base_activation(tiny_base, PROBES)
    with pytest.raises(CacheMismatchError, match="probes is"):
        compute_adapter_delta(tiny_base, adapter(tiny_base, 1), replace(PROBES, texts=PROBES.texts[1:]), activation)
    with pytest.raises(CacheMismatchError, match="max_length is 300, expected 299"):
        DeltaMeter(tiny_base, replace(PROBES, max_length=299), None, activation)
    with pytest.raises(CacheMismatchError, match="layers"):
        DeltaMeter(tiny_base, PROBES, [0], activation)
    other = load_base(tiny_base_path)
    other.tokenizer.chat_template += " "
    with pytest.raises(CacheMismatchError, match="template is"):
        compute_adapter_delta(other, adapter(other, 1), PROBES, activation)


def test_dropout_is_refused(tiny_base_path: Path) -> None:
    base = load_base(tiny_base_path)
    base.model.train()
    with pytest.raises(ConfigError, match="training mode"):
        compute_base_activation(base, PROBES)
    base.model.eval()
    compute_base_activation(base, PROBES)


def test_gradients_through_an_int8_base_are_refused(tiny_base_path: Path) -> None:
    """Its kernels drop gradients silently, so A and B would learn from the last layers only."""
    base = load_base(tiny_base_path, storage="int8")
    weights = adapter(base, 1)
    meter = DeltaMeter(base, PROBES)
    assert float(meter.deltas([weights]).norm()) > 0
    trained = weights.map(lambda t: t.requires_grad_())
    with pytest.raises(ConfigError, match="int8"):
        meter.deltas([trained])
    with torch.no_grad():
        meter.deltas([trained])


def test_bad_requests_are_refused(tiny_base: Base) -> None:
    with pytest.raises(AdapterMismatchError, match="at least one"):
        activations(tiny_base, [])
    with pytest.raises(AdapterMismatchError, match="at least one"):
        activations(tiny_base, [[1]], weights=[])
    with pytest.raises(AdapterMismatchError):
        activations(tiny_base, [[1], []])
    with pytest.raises(ConfigError, match="layers"):
        activations(tiny_base, [[1]], [2])
    with pytest.raises(AdapterMismatchError):
        Activation(torch.zeros(1, 1, 1), compute_base_activation(tiny_base, PROBES).measurement)


@pytest.mark.real
def test_packed_and_alone_agree_on_the_real_base(real_base: Base) -> None:
    probes = create_mixed_probes(6)
    weights = random_lora(LoRASpec.for_model(real_base.spec), 1, size=0.3)
    ids = encode_probes(real_base.tokenizer, probes)
    layers = [11, 23]
    with torch.no_grad():
        together = activations(real_base, ids, layers, weights=[weights])[0]
        single = torch.stack([activations(real_base, [i], layers, weights=[weights])[0, 0] for i in ids])
    error = (together - single).norm(dim=-1) / single.norm(dim=-1)
    assert float(error.max()) < 1e-5
