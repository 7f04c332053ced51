import math
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from llgbm.base import Base
from llgbm.errors import ConfigError
from llgbm.fitting.objectives import TaskObjective
from llgbm.generator import create_generator
from llgbm.packed.batch import Row, TaskGroup, TrainingBatch
from llgbm.training import TrainingConfig, TrainingState, train
from tests.llgbm.fitting.training_runs import CONFIG, Pull, batch_of, parameters
from tests.small_generator import SMALL, SPEC, TINY, active_generator, conditions

# the loop


def test_the_loss_falls_on_the_tiny_base(tiny_base: Base) -> None:
    """Three tasks with the same inputs and different answers, so only the condition distinguishes them."""
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
        # the first step of AdamW has the size of the learning rate, for any gradient
        moved = float((after - before[name]).abs().max())
        shared = name.startswith(("a0", "b0", "q0", "p0"))
        assert moved == pytest.approx(1e-3 * (rate if shared else 1.0), rel=0.02), name


@pytest.mark.parametrize("optimiser", ["adamw", "muon"])
def test_the_trunk_learns_at_a_rate_of_its_own(optimiser: Literal["adamw", "muon"]) -> None:
    """The embeddings of layers and targets, also matrices, keep the common rate."""
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
