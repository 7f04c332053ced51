import threading
from pathlib import Path
from typing import TypeAlias

import pytest
import torch
from torch import Tensor

from llgbm.base import Base, load_base
from llgbm.config import GeneratorConfig, lora_spec
from llgbm.errors import ConfigError
from llgbm.fitting.data_parallel import Alone, backward_in_pieces, share_of
from llgbm.fitting.objectives import TaskObjective
from llgbm.generator import LoRAGenerator, create_generator
from llgbm.packed.batch import Row, TaskGroup, TrainingBatch
from llgbm.training import TrainingConfig, TrainingState, train
from tests.fixtures import in_threads

CONDITIONS = torch.nn.functional.normalize(torch.randn(8, 384, generator=torch.Generator().manual_seed(0)), dim=-1)

Fitted: TypeAlias = tuple[LoRAGenerator, list[TrainingState]]


class Meeting:
    """Sums the tensors of a group of threads."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.slots: list[Tensor | None] = [None] * size
        self.barrier = threading.Barrier(size, timeout=60)


class Member:
    """A process group whose processes are threads."""

    def __init__(self, rank: int, meeting: Meeting) -> None:
        self.rank, self.size, self._meeting = rank, meeting.size, meeting

    def sum(self, tensor: Tensor) -> Tensor:
        self._meeting.slots[self.rank] = tensor.detach().clone()
        self._meeting.barrier.wait()
        total = torch.stack([t for t in self._meeting.slots if t is not None]).sum(0)
        self._meeting.barrier.wait()
        return total


def batch(step: int) -> TrainingBatch:
    """Five groups of different sizes; some have no condition, and in step 0 none has one."""
    groups = []
    for i in range(5):
        rows = [Row((10 + i, 20 + j, 30 + step), (40 + j, 50)) for j in range(1 + (i + step) % 3)]
        plain = step == 0 or (i + step) % 4 == 0
        groups.append(TaskGroup(f"t{i}", None if plain else CONDITIONS[i], rows))
    return groups


def start(base_path: Path) -> tuple[Base, LoRAGenerator]:
    """A separate base, since hooks belong to a model, and a fresh generator."""
    base = load_base(base_path)
    config = GeneratorConfig(basis_rank=8, hidden_size=32, num_blocks=1)
    return base, create_generator(base.spec, lora_spec("tiny"), config)


def fit(
    base: Base,
    generator: LoRAGenerator,
    member: Member | None,
    state_path: Path | None = None,
    *,
    accumulation: int = 1,
) -> Fitted:
    states: list[TrainingState] = []
    config = TrainingConfig(steps=4, learning_rate=1e-2, warmup_steps=0, accumulation=accumulation)
    objective = TaskObjective(base)
    train(generator, objective, batch, config, group=member, on_step=states.append, state_path=state_path)
    return generator, states


def together(base_path: Path, size: int, folder: Path | None = None, *, accumulation: int = 1) -> list[Fitted]:
    meeting = Meeting(size)
    starts = [start(base_path) for _ in range(size)]

    def run(rank: int) -> Fitted:
        state = folder and folder / f"{rank}.pt"
        return fit(*starts[rank], Member(rank, meeting), state, accumulation=accumulation)

    return in_threads(run, range(size))


@pytest.mark.parametrize(("size", "accumulation"), [(2, 1), (3, 1), (1, 2), (1, 99), (2, 2)])
def test_processes_that_share_the_work_give_the_curve_and_the_generator_of_one(
    tiny_base_path: Path, size: int, accumulation: int
) -> None:
    alone, expected = fit(*start(tiny_base_path), None)
    for generator, states in together(tiny_base_path, size, accumulation=accumulation):
        for mine, wanted in zip(states, expected, strict=True):
            assert mine.loss == pytest.approx(wanted.loss, rel=1e-4)
            assert mine.grad_norm == pytest.approx(wanted.grad_norm, rel=1e-3)
            assert mine.parts["rows"] == wanted.parts["rows"]
            assert mine.parts.keys() == wanted.parts.keys()
            assert mine.parts["sft"] == pytest.approx(wanted.parts["sft"], rel=1e-4)
        for name, parameter in generator.named_parameters():
            torch.testing.assert_close(parameter, alone.get_parameter(name), rtol=1e-2, atol=1e-3)


def test_all_processes_have_the_same_generator_bit_for_bit_and_the_first_alone_writes(
    tiny_base_path: Path, tmp_path: Path
) -> None:
    (first, _), (second, _) = together(tiny_base_path, 2, tmp_path)
    for name, parameter in first.named_parameters():
        assert torch.equal(parameter, second.get_parameter(name))
    assert [p.name for p in tmp_path.iterdir()] == ["0.pt"]


def test_a_group_of_one_is_the_process_alone(tiny_base_path: Path) -> None:
    alone, _ = fit(*start(tiny_base_path), None)
    [(generator, _)] = together(tiny_base_path, 1)
    for name, parameter in generator.named_parameters():
        assert torch.equal(parameter, alone.get_parameter(name))


@pytest.mark.parametrize("size", [1, 2, 5])
def test_shares_are_a_partition_of_about_equal_sizes(size: int) -> None:
    whole = batch(1)
    shares = [share_of(whole, Member(rank, Meeting(size))) for rank in range(size)]
    assert sorted(g.task_id for share in shares for g in share) == [g.task_id for g in whole]
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_batch_that_is_too_small_to_share_is_refused() -> None:
    with pytest.raises(ConfigError, match="a batch of 5 groups cannot be shared by 6 processes"):
        share_of(batch(1), Member(0, Meeting(6)))


def test_what_no_process_reached_keeps_no_gradient() -> None:
    used, unused = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    groups = [TaskGroup("a", None)]
    loss, parts = backward_in_pieces(
        lambda _: ((3 * used).sum(), {"mean": 2.5, "rows": 4}), lambda _: 4.0, [groups], [used, unused], Alone()
    )
    assert unused.grad is None
    assert used.grad is not None
    assert used.grad.tolist() == [3, 3]
    assert float(loss) == 6.0
    assert parts == {"mean": 2.5, "rows": 4}
