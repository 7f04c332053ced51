import pytest
import torch
from torch import nn

from llgbm.errors import ConfigError
from llgbm.fitting.muon import Muon, orthogonalised


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(24, 24), (16, 40), (40, 16), (3, 16, 40)])
def test_all_singular_values_come_out_near_one(shape: tuple[int, ...]) -> None:
    values = torch.linalg.svdvals(orthogonalised(random(*shape)))
    assert values.min() > 0.3
    assert values.max() < 1.3


def test_directions_of_a_gradient_of_low_rank_count_alike() -> None:
    left, right = torch.linalg.qr(random(30, 3)).Q, torch.linalg.qr(random(20, 3, seed=1)).Q
    made = orthogonalised(left @ torch.diag(torch.tensor([10.0, 3.0, 1.0])) @ right.T)
    inside = torch.linalg.svdvals(left.T @ made @ right)
    assert inside.min() > 0.6
    torch.testing.assert_close(left @ (left.T @ made @ right) @ right.T, made, atol=1e-4, rtol=0)


def test_zero_stays_zero_and_scale_does_not_matter() -> None:
    assert not orthogonalised(torch.zeros(4, 6)).any()
    torch.testing.assert_close(orthogonalised(random(8, 6)), orthogonalised(1e-6 * random(8, 6)), atol=1e-3, rtol=0)


def test_in_bfloat16_it_is_nearly_the_same() -> None:
    exact, found = orthogonalised(random(24, 40)), orthogonalised(random(24, 40), torch.bfloat16)
    assert found.dtype == torch.float32
    assert 0 < (found - exact).norm() < 0.05 * exact.norm()


def test_a_stack_is_its_matrices_one_by_one() -> None:
    torch.testing.assert_close(orthogonalised(random(3, 8, 6))[1], orthogonalised(random(3, 8, 6)[1]))


def test_on_a_matrix_it_is_torchs_muon() -> None:
    """torch iterates in bfloat16."""
    mine, theirs = nn.Parameter(random(32, 48)), nn.Parameter(random(32, 48))
    one = Muon([mine], lr=0.02, weight_decay=0.1)
    other = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    for step in range(5):
        mine.grad = theirs.grad = random(32, 48, seed=step + 1)
        one.step()
        other.step()
    moved = (theirs - random(32, 48)).norm()
    assert (mine - theirs).norm() < 0.03 * moved


def test_a_matrix_without_a_gradient_stays() -> None:
    still = nn.Parameter(random(4, 4))
    Muon([still]).step()
    torch.testing.assert_close(still.detach(), random(4, 4), atol=0, rtol=0)


def test_vectors_are_refused() -> None:
    with pytest.raises(ConfigError, match="give vectors to another optimiser"):
        Muon([nn.Parameter(torch.zeros(4))])
