import pytest
import torch

from llgbm.conditioning.task_detector import TaskDetector
from llgbm.errors import ConfigError
from tests.small_generator import conditions


def test_a_detector_is_a_logistic_regression_on_conditions_of_unit_entries() -> None:
    task, nothing = conditions(2)
    weight = 40 * (task - nothing) / (task - nothing).norm()
    middle = weight @ (task + nothing) / 2 * len(task) ** 0.5
    kept, held_back = TaskDetector(weight, -middle)(torch.stack([task, nothing])).tolist()
    assert kept > 0.999
    assert held_back < 0.001
    flat = TaskDetector(torch.zeros(384), torch.tensor(1.0))(conditions(3))
    torch.testing.assert_close(flat, torch.full((3,), 1.0).sigmoid())


@pytest.mark.parametrize(
    ("weight", "bias", "message"),
    [
        (torch.zeros(2, 2), torch.tensor(0.0), "a vector and a scalar"),
        (torch.zeros(2), torch.zeros(1), "a vector and a scalar"),
        (torch.tensor([0.0, torch.nan]), torch.tensor(0.0), "not finite"),
        (torch.zeros(2), torch.tensor(torch.inf), "not finite"),
    ],
)
def test_what_is_no_detector_is_refused(weight: torch.Tensor, bias: torch.Tensor, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TaskDetector(weight, bias)


@pytest.mark.parametrize("shape", [(384,), (2, 8)])
def test_conditions_of_another_size_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="for a detector of 384"):
        TaskDetector(torch.zeros(384), torch.tensor(0.0))(torch.zeros(shape))
