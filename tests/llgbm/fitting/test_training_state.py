import math
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from llgbm.config import GeneratorConfig
from llgbm.errors import CheckpointError, ConfigError
from llgbm.training import train
from tests.fixtures import same_weights
from tests.llgbm.fitting.training_runs import CONFIG, Pull, StoppedError, batch_of, require_equal, stop_at
from tests.small_generator import active_generator, conditions


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
    """bfloat16 may be faster or slower on the machine that continues the run."""
    state = tmp_path / "state.pt"
    low = replace(CONFIG, trunk_optimiser="muon", trunk_dtype="bfloat16")
    generator = active_generator()
    assert train(generator, Pull(), batch_of, low, state_path=state) == 0
    made, exact = generator(conditions(2)), active_generator()
    assert train(exact, Pull(), batch_of, replace(low, trunk_dtype="float32"), state_path=state) == 12
    for mine, theirs in zip(made, exact(conditions(2)), strict=True):
        assert same_weights(mine, theirs)


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
    """A finite value with an infinite gradient: the root of zero."""
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
