"""A calibrated head is the base's linearisation: exact without training for full sketches and small adapters."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llgbm.base import Base, load_base
from llgbm.config import LoRASpec
from llgbm.delta import DeltaMeter
from llgbm.errors import AdapterMismatchError, ConfigError
from llgbm.matching.delta_head import DeltaHead, DeltaHeadConfig
from llgbm.matching.head_calibration import _main_directions, calibrate_delta_head
from llgbm.probes import create_mixed_probes
from tests.fixtures import random_lora

PROBES = create_mixed_probes(5, max_length=300)
LAYERS = [0, 1]


def spec_of(base: Base) -> LoRASpec:
    return LoRASpec.for_model(base.spec, rank=4, alpha=8.0)


def error_of(predicted: torch.Tensor, wanted: torch.Tensor) -> float:
    return float(((predicted - wanted).square().sum((0, 2)) / wanted.square().sum((0, 2))).mean())


@pytest.mark.parametrize("targets", [["v_proj", "gate_proj"], ["q_proj", "o_proj", "down_proj"]])
def test_full_sketches_predict_small_deltas_of_unseen_adapters(tiny_base: Base, targets: list[str]) -> None:
    """128 backward passes cover the output space, and 32 directions all outputs of modules of size 32."""
    spec = LoRASpec.for_model(tiny_base.spec, rank=4, alpha=8.0, targets=targets)
    meter = DeltaMeter(tiny_base, PROBES, LAYERS)
    adapters = [random_lora(spec, i, size=1e-3) for i in range(6)]
    with torch.no_grad():
        deltas = meter.deltas(adapters).mean(1)
    head = DeltaHead(tiny_base.spec, spec, LAYERS, DeltaHeadConfig(sketch_size=32, output_rank=128, correction_size=4))
    calibrate_delta_head(head, tiny_base, PROBES, adapters[:2], deltas[:2], directions=128)
    with torch.no_grad():
        error = error_of(head(adapters[2:]), deltas[2:])
    assert error < 0.2


def test_calibration_beats_chance_with_small_sketches(tiny_base: Base) -> None:
    """Without training; a head with random factors stays near 0 even after training on as many pairs."""
    meter = DeltaMeter(tiny_base, PROBES, LAYERS)
    adapters = [random_lora(spec_of(tiny_base), i, size=0.01) for i in range(12)]
    with torch.no_grad():
        deltas = meter.deltas(adapters).mean(1)
    head = DeltaHead(tiny_base.spec, spec_of(tiny_base), LAYERS, DeltaHeadConfig(8, 64, 4))
    calibrate_delta_head(head, tiny_base, PROBES, adapters[:8], deltas[:8], directions=64)
    with torch.no_grad():
        cosine = torch.cosine_similarity(head(adapters[8:]), deltas[8:], dim=-1)
    assert float(cosine.mean()) > 0.3


def test_it_is_repeatable_and_leaves_the_base_and_the_global_state_alone(tiny_base: Base) -> None:
    adapters = [random_lora(spec_of(tiny_base), i) for i in range(2)]
    deltas = torch.randn(2, 2, 64, generator=torch.Generator().manual_seed(0))
    state, before = torch.get_rng_state(), DeltaMeter(tiny_base, PROBES).base_activation.values
    heads = []
    for _ in range(2):
        head = DeltaHead(tiny_base.spec, spec_of(tiny_base), LAYERS, DeltaHeadConfig(4, 8, 4))
        calibrate_delta_head(head, tiny_base, PROBES, adapters, deltas, directions=4, seed=3)
        heads.append(head)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(*(h.state_dict().values() for h in heads), strict=True))
    assert torch.equal(DeltaMeter(tiny_base, PROBES).base_activation.values, before)
    for right, left in heads[0].factors():
        for factor in (right, left):
            torch.testing.assert_close(factor.detach().T @ factor.detach(), torch.eye(4), rtol=0, atol=1e-4)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 12), st.integers(0, 300), st.integers(1, 8), st.sampled_from([1e-18, 1.0, 1e12]), st.integers(0, 9)
)
def test_main_directions_are_orthonormal_and_hold_most_of_the_rows(
    rank: int, zeros: int, count: int, scale: float, seed: int
) -> None:
    """Also for few rows, for rows that are mostly zero, and for none."""
    generator = torch.Generator().manual_seed(seed)
    full = torch.randn(rank, 24, generator=generator) * torch.logspace(0, -2, 12)[:rank, None] * scale
    rows = torch.cat([full, torch.zeros(zeros, 24)])
    found = _main_directions(rows, count, generator)
    torch.testing.assert_close(found @ found.T, torch.eye(count), rtol=0, atol=1e-4)
    if rank:
        values = torch.linalg.svdvals(full.double())
        held = (full.double() @ found.double().T).square().sum()
        assert float(held / values[:count].square().sum()) > 0.9


def test_bad_requests_are_refused(tiny_base: Base, tiny_base_path: Path) -> None:
    head = DeltaHead(tiny_base.spec, spec_of(tiny_base), LAYERS, DeltaHeadConfig(4, 8, 4))
    adapters, deltas = [random_lora(spec_of(tiny_base), 1)], torch.ones(1, 2, 64)
    with pytest.raises(AdapterMismatchError, match="the head predicts"):
        calibrate_delta_head(head, tiny_base, PROBES, adapters, deltas[:, :1])
    with pytest.raises(AdapterMismatchError, match="no adapter"):
        calibrate_delta_head(head, tiny_base, PROBES, [], deltas, directions=2)
    with pytest.raises(ConfigError, match="directions"):
        calibrate_delta_head(head, tiny_base, PROBES, adapters, deltas, directions=9)
    int8 = load_base(tiny_base_path, storage="int8")
    with pytest.raises(ConfigError, match="no gradients"):
        calibrate_delta_head(head, int8, PROBES, adapters, deltas, directions=2)
    int8.model.train()
    with pytest.raises(ConfigError, match="training mode"):
        calibrate_delta_head(head, replace(int8), PROBES, adapters, deltas, directions=2)
