import math
import pickle
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from llgbm.base import Base
from llgbm.batches import TaskGroup, TrainingBatch
from llgbm.config import GeneratorConfig
from llgbm.errors import CheckpointError, ConfigError
from llgbm.generator import LoRAGenerator, create_generator
from llgbm.objectives import TaskObjective
from llgbm.packing import Row
from llgbm.training import TrainingConfig, TrainingState, train
from tests.small_generator import SMALL, SPEC, TINY, active_generator, conditions

CONFIG = TrainingConfig(steps=12, learning_rate=1e-2, warmup_steps=3, decay_fraction=0.25, checkpoint_seconds=-1.0)
"""A state after every step."""


class Pull:
    """Pulls every entry of every adapter towards 1; an extra module is trained along."""

    def __init__(self, change: Callable[[int, Tensor], Tensor] = lambda step, loss: loss) -> None:
        self.extra = nn.Linear(3, 1)
        with torch.no_grad():
            self.extra.weight.fill_(0.5)
            self.extra.bias.zero_()
        self._change = change

    def modules(self) -> Iterable[nn.Module]:
        return [self.extra]

    def weight(self, batch: TrainingBatch) -> float:
        return float(len(batch))

    def __call__(self, generator: LoRAGenerator, batch: TrainingBatch, step: int) -> tuple[Tensor, dict[str, float]]:
        adapters = generator(torch.stack([group.condition for group in batch if group.condition is not None]))
        terms = [(t - 1).square().mean() for adapter in adapters for _, a, b in adapter.pairs() for t in (a, b)]
        loss = self._change(step, torch.stack(terms).mean() + self.extra(torch.ones(3)).square().mean())
        return loss, {"pull": float(loss.detach())}


def batch_of(step: int) -> TrainingBatch:
    return [TaskGroup(f"task {i}", condition) for i, condition in enumerate(conditions(2, seed=step))]


class StoppedError(Exception):
    """What a killed run looks like from inside."""


def stop_at(step: int) -> Callable[[int], TrainingBatch]:
    def batches(current: int) -> TrainingBatch:
        if current == step:
            raise StoppedError
        return batch_of(current)

    return batches


def parameters(generator: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in generator.named_parameters()}


def require_equal(left: nn.Module, right: nn.Module) -> None:
    for (name, p), q in zip(left.named_parameters(), right.parameters(), strict=True):
        assert torch.equal(p, q), name


# the loop


def test_the_loss_falls_on_the_tiny_base(tiny_base: Base) -> None:
    """Three tasks that share their inputs and differ in the answer, so that only the condition tells them apart."""
    given = conditions(3)
    answers = [[65, 66], [70], [80, 81, 82]]
    rows = [[Row([1, 2, x], answer) for x in (10, 20, 30)] for answer in answers]
    groups = [TaskGroup(str(i), given[i], rows[i]) for i in range(3)]
    generator = create_generator(TINY, SPEC, SMALL)
    config = TrainingConfig(steps=60, learning_rate=1e-2, warmup_steps=5, decay_fraction=0.3)
    losses: list[float] = []
    objective = TaskObjective(tiny_base, label_smoothing=0.0)
    train(generator, objective, lambda step: groups, config, on_step=lambda state: losses.append(state.loss))
    assert len(losses) == 60
    assert losses[-1] < 0.2 * losses[0]
    assert not generator.training


def test_every_step_is_reported_once_in_order() -> None:
    states: list[TrainingState] = []
    asked: list[int] = []

    def batches(step: int) -> TrainingBatch:
        asked.append(step)
        return batch_of(step)

    assert train(active_generator(), Pull(), batches, CONFIG, on_step=states.append) == 0
    assert asked == [state.step for state in states] == list(range(12))
    assert [state.learning_rate for state in states] == [CONFIG.learning_rate_at(i) for i in range(12)]
    assert all(state.parts == {"pull": state.loss} for state in states)
    assert all(state.grad_norm > 0 and state.seconds > 0 for state in states)


def test_modules_of_the_objective_are_trained_with_the_generator() -> None:
    objective = Pull()
    train(active_generator(), objective, batch_of, CONFIG)
    assert float(objective.extra(torch.ones(3)).detach()) < 1.5


def test_weight_decay_shrinks_matrices_and_spares_vectors() -> None:
    def no_gradient(step: int, loss: Tensor) -> Tensor:
        return 0 * loss

    generator = active_generator()
    with torch.no_grad():
        generator.gate.weight.fill_(0.1)
    before = parameters(generator)
    train(generator, Pull(no_gradient), batch_of, replace(CONFIG, weight_decay=0.5))
    for name, after in parameters(generator).items():
        if after.dim() > 1:
            assert float(after.norm()) < float(before[name].norm()), name
        else:
            assert torch.equal(after, before[name]), name


# states and resumption


@pytest.mark.parametrize("step", [1, 6, 11])
@pytest.mark.parametrize("trunk_optimiser", ["adamw", "muon"])
def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(
    step: int, trunk_optimiser: Literal["adamw", "muon"], tmp_path: Path
) -> None:
    config = replace(CONFIG, trunk_optimiser=trunk_optimiser)
    whole, stopped, resumed = active_generator(), active_generator(), active_generator(seed=5)
    objectives = [Pull(), Pull(), Pull()]
    train(whole, objectives[0], batch_of, config)
    state = tmp_path / "deep" / "state.pt"
    with pytest.raises(StoppedError):
        train(stopped, objectives[1], stop_at(step), config, state_path=state)
    losses: list[int] = []
    first = train(resumed, objectives[2], batch_of, config, state_path=state, on_step=lambda s: losses.append(s.step))
    assert first == step
    assert losses == list(range(step, 12))
    require_equal(resumed, whole)
    require_equal(objectives[2].extra, objectives[0].extra)


def test_a_finished_run_is_read_back_and_not_trained_on(tmp_path: Path) -> None:
    one, again = active_generator(), active_generator(seed=5)
    state = tmp_path / "state.pt"
    train(one, Pull(), batch_of, CONFIG, state_path=state)
    assert train(again, Pull(), stop_at(12), CONFIG, state_path=state) == 12
    require_equal(again, one)
    assert not again.training
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]


def test_a_state_is_written_at_the_end_and_when_its_time_has_come(tmp_path: Path) -> None:
    state = tmp_path / "state.pt"
    rarely = replace(CONFIG, checkpoint_seconds=3600.0)
    with pytest.raises(StoppedError):
        train(active_generator(), Pull(), stop_at(11), rarely, state_path=state)
    assert not state.exists()
    train(active_generator(), Pull(), batch_of, rarely, state_path=state)
    assert state.exists()


def test_a_write_cut_short_leaves_the_state_before_it(tmp_path: Path) -> None:
    state = tmp_path / "state.pt"
    with pytest.raises(StoppedError):
        train(active_generator(), Pull(), stop_at(6), CONFIG, state_path=state)
    (tmp_path / "state.pt.tmp").write_bytes(state.read_bytes()[:100])
    whole, resumed = active_generator(), active_generator()
    train(whole, Pull(), batch_of, CONFIG)
    assert train(resumed, Pull(), batch_of, CONFIG, state_path=state) == 6
    require_equal(resumed, whole)


def test_a_run_may_go_on_in_another_precision_that_ends_with_it(tmp_path: Path) -> None:
    """On the machine it goes on at, bfloat16 may be the fast one, or the slow one."""
    state = tmp_path / "state.pt"
    low = replace(CONFIG, trunk_optimiser="muon", trunk_dtype="bfloat16")
    generator = active_generator()
    assert train(generator, Pull(), batch_of, low, state_path=state) == 0
    made, exact = generator(conditions(2)), active_generator()
    assert train(exact, Pull(), batch_of, replace(low, trunk_dtype="float32"), state_path=state) == 12
    for mine, theirs in zip(made, exact(conditions(2)), strict=True):
        for (_, a, b), (_, other_a, other_b) in zip(mine.pairs(), theirs.pairs(), strict=True):
            assert torch.equal(a, other_a)
            assert torch.equal(b, other_b)


@pytest.mark.parametrize("optimiser", ["adamw", "muon"])
def test_a_run_in_bfloat16_is_not_the_one_in_float32_but_near_it(optimiser: Literal["adamw", "muon"]) -> None:
    ends = []
    for dtype in ("float32", "bfloat16"):
        ends.append(active_generator())
        config = replace(CONFIG, trunk_optimiser=optimiser, trunk_dtype=dtype)
        train(ends[-1], Pull(), batch_of, config)
    start, exact, low = (parameters(g) for g in (active_generator(), *ends))
    moved = torch.cat([(exact[n] - start[n]).flatten() for n in start])
    apart = torch.cat([(exact[n] - low[n]).flatten() for n in start])
    assert 0 < apart.norm() < 0.2 * moved.norm()


def test_a_run_may_be_made_longer_and_saved_more_often_but_not_shorter(tmp_path: Path) -> None:
    state = tmp_path / "state.pt"
    train(active_generator(), Pull(), batch_of, CONFIG, state_path=state)
    longer = replace(CONFIG, steps=15, checkpoint_seconds=60.0)
    assert train(active_generator(), Pull(), batch_of, longer, state_path=state) == 12
    with pytest.raises(CheckpointError, match="after 15 steps, beyond the 12 asked for"):
        train(active_generator(), Pull(), batch_of, CONFIG, state_path=state)


@pytest.mark.parametrize(
    "change",
    [
        {"learning_rate": 1e-3},
        {"shared_rate": 0.3},
        {"warmup_steps": 4},
        {"decay_fraction": 0.5},
        {"weight_decay": 0.1},
        {"max_grad_norm": 2.0},
        {"seed": 1},
    ],
)
def test_a_state_of_other_settings_is_refused_and_named(tmp_path: Path, change: dict[str, Any]) -> None:
    state = tmp_path / "state.pt"
    train(active_generator(), Pull(), batch_of, replace(CONFIG, steps=1), state_path=state)
    with pytest.raises(CheckpointError, match=rf"other settings \({next(iter(change))}\)"):
        train(active_generator(), Pull(), batch_of, replace(CONFIG, **change), state_path=state)


def test_a_state_of_another_model_is_refused(tmp_path: Path) -> None:
    state = tmp_path / "state.pt"
    train(active_generator(), Pull(), batch_of, CONFIG, state_path=state)
    other = active_generator(config=GeneratorConfig(hidden_size=16, basis_rank=8))
    with pytest.raises(CheckpointError, match="state of another model"):
        train(other, Pull(), batch_of, CONFIG, state_path=state)


def save_torch(content: object) -> Callable[[Path], None]:
    return lambda path: torch.save(content, path)


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"not a state"),
        lambda path: path.write_bytes(b"\x80\x02G1"),
        lambda path: path.write_bytes(pickle.dumps(StoppedError, protocol=2)),
        lambda path: path.mkdir(),
        save_torch({"step": 3}),
        save_torch([1, 2]),
        save_torch({"step": "x", "settings": {}, "model": {}, "optimiser": {}}),
    ],
)
def test_a_file_that_is_no_state_is_refused(tmp_path: Path, write: Callable[[Path], None]) -> None:
    write(tmp_path / "state.pt")
    with pytest.raises(CheckpointError, match="is not the state of a training run"):
        train(active_generator(), Pull(), batch_of, CONFIG, state_path=tmp_path / "state.pt")


def test_a_torn_state_is_refused(tmp_path: Path) -> None:
    state = tmp_path / "state.pt"
    train(active_generator(), Pull(), batch_of, CONFIG, state_path=state)
    state.write_bytes(state.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="is not the state of a training run"):
        train(active_generator(), Pull(), batch_of, CONFIG, state_path=state)


def nan_at_five(step: int, loss: Tensor) -> Tensor:
    return loss * (math.nan if step == 5 else 1)


def infinite_at_five(step: int, loss: Tensor) -> Tensor:
    return loss * (math.inf if step == 5 else 1)


def steep_at_five(step: int, loss: Tensor) -> Tensor:
    """A finite value whose gradient is not: the root of zero."""
    return loss + (loss - loss.detach()).abs().sqrt() if step == 5 else loss


@pytest.mark.parametrize("change", [nan_at_five, infinite_at_five, steep_at_five])
def test_a_loss_or_gradient_that_is_not_finite_stops_at_the_last_good_state(
    tmp_path: Path, change: Callable[[int, Tensor], Tensor]
) -> None:
    state = tmp_path / "state.pt"
    broken = active_generator()
    with pytest.raises(ConfigError, match="at step 5; lower learning_rate or check the data"):
        train(broken, Pull(change), batch_of, CONFIG, state_path=state)
    assert all(bool(torch.isfinite(p).all()) for p in broken.parameters())
    whole, resumed = active_generator(), active_generator(seed=5)
    train(whole, Pull(), batch_of, CONFIG)
    assert train(resumed, Pull(), batch_of, CONFIG, state_path=state) == 5
    require_equal(resumed, whole)


def test_a_gradient_too_large_for_its_norm_stops_before_it_breaks_parameters() -> None:
    generator = active_generator()
    before = parameters(generator)

    def huge(step: int, loss: Tensor) -> Tensor:
        return loss * 1e30

    with pytest.raises(ConfigError, match="gradient norm inf at step 0"):
        train(generator, Pull(huge), batch_of, CONFIG)
    for name, after in parameters(generator).items():
        assert torch.equal(after, before[name]), name


@pytest.mark.parametrize("rate", [0.0, 0.25, 1.0])
def test_the_shared_part_learns_at_a_rate_of_its_own(rate: float) -> None:
    generator = active_generator()
    before = parameters(generator)
    config = TrainingConfig(steps=1, learning_rate=1e-3, warmup_steps=0, decay_fraction=0.0, shared_rate=rate)
    train(generator, Pull(), batch_of, config)
    for name, after in parameters(generator).items():
        moved = float(
            (after - before[name]).abs().max()
        )  # the first step of AdamW is the learning rate, whatever the gradient
        shared = name.startswith(("a0", "b0", "q0", "p0"))
        assert moved == pytest.approx(1e-3 * (rate if shared else 1.0), rel=0.02), name


@pytest.mark.parametrize("optimiser", ["adamw", "muon"])
def test_the_trunk_learns_at_a_rate_of_its_own(optimiser: Literal["adamw", "muon"]) -> None:
    """And the embeddings of layers and targets, matrices too, at that of all else."""
    moved = {}
    for rate in (1.0, 4.0):
        generator = active_generator()
        before = parameters(generator)
        config = TrainingConfig(
            steps=1, learning_rate=1e-3, warmup_steps=0, decay_fraction=0.0, trunk_optimiser=optimiser, trunk_rate=rate
        )
        train(generator, Pull(), batch_of, config)
        moved[rate] = {name: float((after - before[name]).norm()) for name, after in parameters(generator).items()}
    for name, slow in moved[1.0].items():
        trunk = name in ("read.weight", "heads") or (".weight" in name and ("up" in name or "down" in name))
        assert moved[4.0][name] == pytest.approx(slow * (4 if trunk else 1), rel=0.02), name


# settings

configs = st.builds(
    TrainingConfig,
    steps=st.integers(1, 300),
    learning_rate=st.floats(1e-6, 1.0),
    warmup_steps=st.integers(0, 400),
    decay_fraction=st.floats(0, 1),
)


@given(config=configs)
def test_the_learning_rate_warms_up_stays_and_falls(config: TrainingConfig) -> None:
    rates = [config.learning_rate_at(step) for step in range(config.steps)]
    assert all(0 < rate <= config.learning_rate for rate in rates)
    top = rates.index(max(rates))
    rising, falling = rates[: top + 1], rates[top:]
    assert rising == sorted(rising)
    assert falling == sorted(falling, reverse=True)
    if config.warmup_steps <= config.steps * (1 - config.decay_fraction):
        assert max(rates) == pytest.approx(config.learning_rate)
    assert rates[0] <= config.learning_rate / max(1, config.warmup_steps) * (1 + 1e-9)
    decay = config.decay_fraction * config.steps
    if decay >= 1:
        assert rates[-1] <= config.learning_rate / decay * (1 + 1e-9)


@given(config=configs, more=st.integers(1, 300))
def test_a_longer_run_has_the_same_schedule_until_the_shorter_one_decays(config: TrainingConfig, more: int) -> None:
    longer = replace(config, steps=config.steps + more)
    plateau = int(config.steps * (1 - config.decay_fraction))
    for step in range(plateau):
        assert longer.learning_rate_at(step) == config.learning_rate_at(step)


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 0},
        {"warmup_steps": -1},
        {"decay_fraction": 1.1},
        {"decay_fraction": math.nan},
        {"learning_rate": 0.0},
        {"learning_rate": math.nan},
        {"learning_rate": math.inf},
        {"max_grad_norm": 0.0},
        {"weight_decay": -0.1},
        {"shared_rate": -0.1},
        {"shared_rate": math.inf},
        {"trunk_rate": -0.1},
        {"trunk_rate": math.nan},
        {"trunk_optimiser": "sgd"},
        {"trunk_dtype": "float16"},
    ],
)
def test_settings_out_of_range_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"need steps|must be positive|not (be )?negative|trunk_dtype is"):
        replace(CONFIG, **change)
