import pytest
import torch

from llgbm.base import Base
from llgbm.config import lora_spec
from training.adapters.delta_store import ProbeConfig
from training.phases.cost import CostConfig, fastest, measure_base, measure_generators, parameter_bytes

CONFIG = CostConfig(rows=2, row_tokens=8, repeats=1, basis_ranks=(8, 16))


def test_a_base_has_its_bytes_and_speeds(tiny_base: Base) -> None:
    lora = lora_spec("tiny")
    found = measure_base(tiny_base, lora, ProbeConfig(count=2, layers=1, chat=False).build(), CONFIG)
    assert found["base_bytes"] == parameter_bytes(tiny_base.model)
    assert found["adapter_parameters"] == lora.num_parameters
    assert 4 * lora.num_parameters < found["adapter_bytes"] < 4 * lora.num_parameters + 20_000
    assert all(value > 0 for value in found.values())


def test_a_larger_generator_has_more_parameters(tiny_base: Base) -> None:
    small, large = measure_generators(tiny_base, lora_spec("tiny"), CONFIG)
    assert small["parameters"] < large["parameters"]
    assert small["generate_seconds"] > 0


def test_tied_weights_count_once() -> None:
    one, other = torch.nn.Linear(4, 4, bias=False), torch.nn.Linear(4, 4, bias=False)
    other.weight = one.weight
    assert parameter_bytes(torch.nn.ModuleList([one, other])) == 64


@pytest.mark.parametrize("repeats", [0, 1, 3])
def test_one_run_does_not_count(repeats: int) -> None:
    calls: list[int] = []
    assert fastest(lambda: calls.append(1), repeats) >= 0
    assert len(calls) == 1 + max(1, repeats)
