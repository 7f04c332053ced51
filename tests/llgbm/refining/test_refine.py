from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import llgbm
from llgbm.base import Base, load_base
from llgbm.errors import CheckpointError, ConfigError, ContextLengthError
from llgbm.linears.frozen_linear import fastest_training_storage
from llgbm.lora import LoRAWeights
from llgbm.refining.refine import most_steps, refine
from llgbm.refining.settings import RefineConfig, Refined, RefineRow, RefineStep
from tests.fixtures import random_lora, same_weights
from tests.small_generator import SPEC

WORDS = ("cat", "dog", "sun", "sea", "tree", "bird", "rain", "hill", "road", "lamp", "door", "fish")
ROWS = [RefineRow.of(word, "yes") for word in WORDS]
CONFIG = RefineConfig(description="Say yes.", max_steps=16, check_every=8, learning_rate=2e-2, start_decay=0.0)


def distance(one: LoRAWeights, other: LoRAWeights) -> float:
    mine, others = (torch.cat([t.flatten() for t in weights.tensors]) for weights in (one, other))
    return float(torch.dist(mine, others))


def _held_out(count: int) -> list[int]:
    """Indices of the examples that are held out with seed 0."""
    return np.random.default_rng(0).permutation(count)[::4].tolist()  # type: ignore[no-any-return]


def steps_of(run: Callable[[Callable[[RefineStep], None]], Refined]) -> tuple[Refined, list[RefineStep]]:
    steps: list[RefineStep] = []
    return run(steps.append), steps


def test_held_out_examples_choose_the_steps_and_tell_that_refining_helped(tiny_base: Base) -> None:
    start = random_lora(SPEC, 0)
    refined, steps = steps_of(lambda on_step: refine(tiny_base, start, ROWS, CONFIG, on_step=on_step))

    assert refined.held_out is not None
    assert refined.start_held_out is not None
    assert refined.start_held_out.rows == refined.held_out.rows == 2 * 3  # two forms of a quarter of 12
    assert refined.held_out.accuracy > refined.start_held_out.accuracy
    assert refined.held_out.log_likelihood > refined.start_held_out.log_likelihood
    assert refined.helped
    assert refined.best is refined.weights
    assert refined.steps in (8 + 4, 16 + 4)  # a quarter of all steps more, on all examples
    chosen = refined.steps - 4
    assert refined.losses[-1] < refined.losses[0] / 2
    assert [step.step for step in steps] == list(range(1, 16 + 4 + 1))
    assert [step.phase for step in steps] == ["choose"] * 16 + ["train"] * 4
    assert {step.total for step in steps} == {most_steps(12, CONFIG)} == {16 + 4}
    assert [step.loss for step in [*steps[:chosen], *steps[16:]]] == list(refined.losses)


def test_the_last_steps_go_on_from_the_chosen_one_with_the_held_out_examples_too(tiny_base: Base) -> None:
    start, config = random_lora(SPEC, 0), replace(CONFIG, steps=8)
    whole, steps = steps_of(lambda on_step: refine(tiny_base, start, ROWS, config, on_step=on_step))

    assert [step.phase for step in steps] == ["choose"] * 8 + ["train"] * 2
    # only the held-out examples have another answer: the loss rises when they join
    other = [
        RefineRow.of(row.messages[0]["content"], "no") if i in _held_out(12) else row for i, row in enumerate(ROWS)
    ]
    surprised, others = steps_of(lambda on_step: refine(tiny_base, start, other, config, on_step=on_step))
    assert [step.loss for step in others[:8]] == [step.loss for step in steps[:8]]
    assert others[8].loss > steps[8].loss
    assert not same_weights(surprised.weights, whole.weights)


def test_the_same_call_gives_the_same_adapter_and_another_seed_another(tiny_base: Base) -> None:
    start = random_lora(SPEC, 0)
    before = start.map(torch.clone)
    config = replace(CONFIG, max_steps=4, check_every=2)
    first = refine(tiny_base, start, ROWS, config)

    assert same_weights(refine(tiny_base, start, ROWS, config).weights, first.weights)
    assert not same_weights(refine(tiny_base, start, ROWS, replace(config, seed=1)).weights, first.weights)
    assert same_weights(start, before)


@pytest.mark.parametrize("stop", [3, 8, 9])
def test_a_call_that_was_interrupted_goes_on_from_its_state_to_the_same_result(
    tiny_base: Base, tmp_path: Path, stop: int
) -> None:
    config = replace(CONFIG, max_steps=8, check_every=4)
    whole, all_steps = steps_of(lambda on_step: refine(tiny_base, None, ROWS, config, on_step=on_step))

    def cancel(step: RefineStep) -> None:
        if step.step == stop:
            save_file(step.state(), tmp_path / "state.safetensors")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        refine(tiny_base, None, ROWS, config, on_step=cancel)
    state = load_file(tmp_path / "state.safetensors")
    rest, steps = steps_of(lambda on_step: refine(tiny_base, None, ROWS, config, on_step=on_step, resume=state))

    assert [step.step for step in steps] == [step.step for step in all_steps[stop:]]
    assert same_weights(rest.weights, whole.weights)
    assert rest.losses == whole.losses
    assert (rest.start_held_out, rest.held_out) == (whole.start_held_out, whole.held_out)
    assert not any(p.requires_grad for p in tiny_base.model.parameters())


def test_a_state_of_other_arguments_or_a_damaged_one_is_refused(tiny_base: Base) -> None:
    config = RefineConfig(steps=1, hold_out=False)
    _, steps = steps_of(lambda on_step: refine(tiny_base, None, ROWS, config, on_step=on_step))
    state = steps[0].state()

    with pytest.raises(CheckpointError, match="other examples"):
        refine(tiny_base, None, ROWS[1:], config, resume=state)
    with pytest.raises(CheckpointError, match="other examples"):
        refine(tiny_base, random_lora(SPEC, 1), ROWS, config, resume=state)
    with pytest.raises(CheckpointError, match="lacks sums"):
        refine(tiny_base, None, ROWS, config, resume={n: t for n, t in state.items() if n != "sums"})
    with pytest.raises(CheckpointError, match="lacks 'exp_avg'"):
        refine(tiny_base, None, ROWS, config, resume={n: t for n, t in state.items() if n != "steps.exp_avg"})
    with pytest.raises(CheckpointError, match="weights of the state is"):
        refine(tiny_base, None, ROWS, config, resume={**state, "steps.weights": torch.zeros(3)})


def test_refining_that_does_not_help_says_so_and_names_the_start_as_the_better_choice(tiny_base: Base) -> None:
    taught = refine(tiny_base, None, ROWS, replace(CONFIG, steps=16, hold_out=False)).weights
    # every held-out example has an answer of its own, so that nothing can be learned for it from the others
    contradiction = [RefineRow.of(word, "yes" if i % 2 else f"no {word}") for i, word in enumerate(WORDS)]
    refined = refine(tiny_base, taught, contradiction[::2], replace(CONFIG, steps=8), validation=contradiction[1::2])

    assert refined.helped is False
    assert refined.best is refined.start is taught
    assert refined.start_held_out is not None
    assert refined.held_out is not None
    assert refined.held_out.log_likelihood < refined.start_held_out.log_likelihood


def test_few_examples_have_a_fixed_number_of_steps_and_no_score(tiny_base: Base) -> None:
    refined = refine(tiny_base, None, ROWS[:3], replace(CONFIG, few_steps=5))

    assert refined.steps == len(refined.losses) == most_steps(3, replace(CONFIG, few_steps=5)) == 5
    assert (refined.held_out, refined.start_held_out, refined.helped) == (None, None, None)
    assert refined.best is refined.weights


def test_validation_examples_take_the_place_of_held_out_ones(tiny_base: Base) -> None:
    refined, steps = steps_of(
        lambda on_step: refine(tiny_base, None, ROWS[:4], CONFIG, validation=ROWS[4:6], on_step=on_step)
    )

    assert refined.held_out is not None
    assert refined.held_out.rows == 4
    assert [step.phase for step in steps] == ["train"] * 16
    assert most_steps(4, CONFIG, validation=2) == 16
    # the adapter of the chosen step, not of the last one
    short = refine(tiny_base, None, ROWS[:4], replace(CONFIG, hold_out=False, max_steps=16), validation=ROWS[4:6])
    assert same_weights(short.weights, refined.weights)


def test_decay_towards_the_start_keeps_the_adapter_near_it(tiny_base: Base) -> None:
    start = random_lora(SPEC, 0)
    config = replace(CONFIG, steps=8, hold_out=False)
    free = refine(tiny_base, start, ROWS, config).weights
    held = refine(tiny_base, start, ROWS, replace(config, start_decay=20.0)).weights

    assert 0 < distance(held, start) < 0.8 * distance(free, start)


def test_the_description_stands_in_the_context_of_its_share_of_the_rows(tiny_base: Base) -> None:
    config = replace(CONFIG, steps=1, hold_out=False, rows_per_step=4)
    losses = {
        share: refine(tiny_base, None, ROWS, replace(config, description_share=share)).losses[0]
        for share in (0.0, 0.5, 1.0)
    }
    without = refine(tiny_base, None, ROWS, replace(config, description=None)).losses[0]

    assert losses[0.0] == without
    assert len(set(losses.values())) == 3


def test_the_fastest_storage_learns_and_int8_is_refused(tiny_base_path: Path) -> None:
    config = replace(CONFIG, steps=12, hold_out=False)
    losses = refine(load_base(tiny_base_path, storage=fastest_training_storage()), None, ROWS, config).losses
    assert losses[-1] < losses[0] / 4

    with pytest.raises(ConfigError, match="passes no gradients"):
        refine(load_base(tiny_base_path, storage="int8"), None, ROWS, config)


def test_bad_input_names_the_problem(tiny_base: Base) -> None:
    with pytest.raises(ConfigError, match="no example"):
        refine(tiny_base, None, [], CONFIG)
    with pytest.raises(ContextLengthError, match="example 2 has"):
        refine(tiny_base, None, [ROWS[0], RefineRow.of("long " * 300, "yes")], replace(CONFIG, max_row_tokens=200))
    with pytest.raises(ConfigError, match="answer of an example is empty"):
        RefineRow.of("cat", " ")
    with pytest.raises(ConfigError, match="turn of the user"):
        RefineRow(({"role": "system", "content": "be brief"},), "yes")
    with pytest.raises(ConfigError, match="lower learning_rate"):
        refine(tiny_base, None, ROWS, replace(CONFIG, learning_rate=1e30, steps=9, hold_out=False))


@pytest.mark.parametrize(
    ("field", "value"),
    [("steps", 0), ("max_steps", 0), ("description_share", 1.5), ("learning_rate", 0.0), ("seed", -1)],
)
def test_settings_out_of_range_are_refused(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=field):
        RefineConfig(**{field: value})  # type: ignore[arg-type]


def test_the_library_exports_it() -> None:
    assert llgbm.refine is refine
    assert llgbm.RefineConfig is RefineConfig
