from collections import Counter
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch

from llgbm.base import Base
from llgbm.chat import answer_ids, prompt_ids, task_messages
from llgbm.errors import ConfigError
from llgbm.packed.batch import pack
from llgbm.text_encoder import PretrainedTextEncoder
from tests.training.recipe.sampler_runs import (
    CONFIG,
    TASKS,
    Recorder,
    content,
    groups_of,
    in_context,
    initials,
    nearest,
    sampler_of,
)  # fmt: skip
from training.recipe.sampler import TaskSampler
from training.tasks.format import Example

# what is drawn


def test_a_batch_depends_on_seed_and_step_alone(tiny_base: Base, encoder: PretrainedTextEncoder) -> None:
    one, other = sampler_of(tiny_base, encoder), sampler_of(tiny_base, encoder)
    forwards = [content(one(step)) for step in range(6)]
    backwards = [content(other(step)) for step in reversed(range(6))][::-1]
    assert forwards == backwards
    assert all(left != right for left, right in pairwise(forwards))
    assert content(sampler_of(tiny_base, encoder, seed=1)(0)) != forwards[0]


def test_draws_stay_the_same_from_version_to_version(tiny_base: Base, encoder: PretrainedTextEncoder) -> None:
    """A stopped run that is continued by a later version must go on with the same batches."""
    drawn = groups_of(sampler_of(tiny_base, encoder), 3)
    assert [(g.task_id, g.condition is None, in_context(tiny_base, g), initials(tiny_base, g)) for g in drawn] == [
        ("first", False, False, "bpfeaoc"),
        ("reverse", False, False, "ecpdhc"),
        ("upper", False, False, "dpbera"),
        ("upper", False, False, "coderf"),
        ("first", False, True, "dpehof"),
        ("reverse", False, False, "bhrbef"),
        ("upper", False, False, "robeap"),
        ("first", False, False, "erhobcf"),
        ("reverse", False, True, "fpabo"),
        ("upper", False, False, "rhcbba"),
        ("reverse", True, True, "pfrdh"),
        ("first", False, True, "bpdcc"),
    ]


def test_every_task_is_drawn_once_in_an_epoch(tiny_base: Base, encoder: PretrainedTextEncoder) -> None:
    drawn = [group.task_id for group in groups_of(sampler_of(tiny_base, encoder), 9)]
    epochs = [tuple(drawn[i : i + 3]) for i in range(0, len(drawn), 3)]
    assert all(sorted(epoch) == ["first", "reverse", "upper"] for epoch in epochs)
    assert len(set(epochs)) > 2


def test_only_training_rows_and_seen_descriptions_are_ever_used(
    tiny_base: Base, encoder: PretrainedTextEncoder
) -> None:
    recorder = Recorder(encoder)
    sampler = sampler_of(tiny_base, recorder, context_fraction=0.7)
    tokenizer = tiny_base.tokenizer
    allowed = {
        (t.task_id, prompt_ids(tokenizer, task_messages(e.input, description=d)), answer_ids(tokenizer, e.output))
        for t in TASKS
        for e in t.train
        for d in (None, *t.seen_descriptions)
    }
    drawn = {
        (group.task_id, tuple(row.prompt), tuple(row.answer)) for group in groups_of(sampler, 150) for row in group.rows
    }
    assert drawn <= allowed
    assert len(drawn) > 0.9 * len(allowed)
    lines = {f"{e.input} -> {e.output}" for t in TASKS for e in t.train}
    assert set(recorder.seen) <= lines | {d for t in TASKS for d in t.seen_descriptions}
    held_back = {text for t in TASKS for text in (*t.unseen_descriptions, *(e.input for e in t.test))}
    assert not any(text in seen for seen in recorder.seen for text in held_back)


@pytest.mark.parametrize("budget", [60, 220, 400])
def test_groups_keep_to_their_budget(tiny_base: Base, encoder: PretrainedTextEncoder, budget: int) -> None:
    sampler = sampler_of(tiny_base, encoder, tokens_per_group=budget)
    counts = Counter[int]()
    for group in groups_of(sampler, 20):
        counts[len(group.rows)] += 1
        assert len(group.rows) == 1 or pack([group.rows]).num_tokens <= budget
        assert len(group.rows) == len({tuple(row.prompt) for row in group.rows})
    assert max(counts) == 1 if budget == 60 else max(counts) > 1


def test_rows_beyond_the_limit_are_never_drawn(tiny_base: Base, encoder: PretrainedTextEncoder) -> None:
    long = Example("a very long input " * 5, "never drawn")
    tasks = [replace(t, train=(long, *t.train, long)) for t in TASKS]
    sampler = sampler_of(tiny_base, encoder, tasks=tasks, max_row_tokens=60)
    never = answer_ids(tiny_base.tokenizer, long.output)
    assert all(tuple(row.answer) != never for group in groups_of(sampler, 40) for row in group.rows)


# conditions and contexts


def test_a_warm_start_trains_the_shared_part_with_the_description_in_the_context(
    tiny_base: Base, encoder: PretrainedTextEncoder
) -> None:
    sampler = sampler_of(tiny_base, encoder, warm_start_steps=5)
    for group in groups_of(sampler, 5):
        assert group.condition is None
        assert in_context(tiny_base, group)
    assert any(group.condition is not None for group in sampler(5))


def test_shared_groups_always_have_the_description_in_the_context(
    tiny_base: Base, encoder: PretrainedTextEncoder
) -> None:
    for group in groups_of(sampler_of(tiny_base, encoder, shared_fraction=0.5), 20):
        assert group.condition is not None or in_context(tiny_base, group)


def test_fractions_are_about_those_asked_for(tiny_base: Base, encoder: PretrainedTextEncoder) -> None:
    sampler = sampler_of(
        tiny_base, encoder, tokens_per_group=1, noise=0.0,
        shared_fraction=0.25, context_fraction=0.4, example_fraction=0.3, mixed_fraction=0.2,
    )  # fmt: skip
    groups = groups_of(sampler, 250)
    conditioned = [group for group in groups if group.condition is not None]
    assert 1 - len(conditioned) / len(groups) == pytest.approx(0.25, abs=0.05)
    assert sum(in_context(tiny_base, g) for g in conditioned) / len(conditioned) == pytest.approx(0.4, abs=0.06)
    plain = sum(nearest(g.condition, encoder)[1] > 1 - 1e-5 for g in conditioned if g.condition is not None)
    assert plain / len(conditioned) == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize(
    "change", [{"example_fraction": 0.0, "mixed_fraction": 0.0}, {"example_fraction": 1.0, "mixed_fraction": 0.0}]
)
def test_conditions_are_those_of_the_groups_own_task(
    tiny_base: Base, encoder: PretrainedTextEncoder, change: dict[str, Any]
) -> None:
    sampler = sampler_of(tiny_base, encoder, tokens_per_group=1, noise=0.0, num_examples=12, **change)
    by_examples = {
        t.task_id: torch.nn.functional.normalize(
            encoder.encode([f"{e.input} -> {e.output}" for e in t.train]).mean(0), dim=0
        )
        for t in TASKS
    }
    for group in groups_of(sampler, 20):
        if group.condition is None:
            continue
        if change["example_fraction"]:
            torch.testing.assert_close(group.condition, by_examples[group.task_id], atol=1e-5, rtol=0)
        else:
            found, cosine = nearest(group.condition, encoder)
            assert found == group.task_id
            assert cosine == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("noise", [0.1, 1.0])
def test_noise_has_the_length_asked_for_and_conditions_stay_normalised(
    tiny_base: Base, encoder: PretrainedTextEncoder, noise: float
) -> None:
    sampler = sampler_of(tiny_base, encoder, tokens_per_group=1, noise=noise, example_fraction=0.0, mixed_fraction=0.0)
    given = [g.condition for g in groups_of(sampler, 40) if g.condition is not None]
    assert all(float(c.norm()) == pytest.approx(1, abs=1e-5) for c in given)
    mean = sum(nearest(c, encoder)[1] for c in given) / len(given)
    assert mean == pytest.approx((1 + noise**2) ** -0.5, abs=0.05)


# procedural tasks


def test_procedural_tasks_have_their_groups_and_their_epochs(tiny_base: Base, encoder: PretrainedTextEncoder) -> None:
    own, made_up = TASKS[:1], TASKS[1:]
    config = replace(CONFIG, groups=3, synthetic_groups=2, tokens_per_group=60)
    sampler = TaskSampler(own, tiny_base, encoder, config, 0, made_up)
    for step in range(5):
        drawn = [group.task_id for group in sampler(step)]
        assert drawn[0] == "upper"
        assert sorted(drawn[1:]) == ["first", "reverse"]


# what is refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": 0}, "at least 1"),
        ({"tokens_per_group": 0}, "at least 1"),
        ({"max_row_tokens": 0}, "at least 1"),
        ({"num_examples": 0}, "at least 1"),
        ({"warm_start_steps": -1}, "must not be negative"),
        ({"noise": -0.1}, "must not be negative"),
        ({"synthetic_groups": 5}, "family_groups must not be more than groups"),
        ({"synthetic_groups": 2, "family_groups": 3}, "must not be more than groups"),
        ({"family_groups": -1}, "must not be negative"),
        ({"sisters": 0}, "at least 1"),
        ({"shots_fraction": 2.0}, "between 0 and 1"),
        ({"shared_fraction": 1.1}, "between 0 and 1"),
        ({"context_fraction": float("nan")}, "between 0 and 1"),
        ({"example_fraction": 0.6, "mixed_fraction": 0.5}, "between 0 and 1"),
    ],
)
def test_settings_out_of_range_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(CONFIG, **change)


def test_tasks_that_cannot_be_trained_on_are_refused_before_the_first_step(
    tiny_base: Base, encoder: PretrainedTextEncoder
) -> None:
    single = replace(TASKS[0], descriptions=TASKS[0].descriptions[:1])
    with pytest.raises(ConfigError, match="upper has no description to train on"):
        sampler_of(tiny_base, encoder, tasks=[TASKS[1], single])
    with pytest.raises(ConfigError, match="upper has no row of at most 12 tokens of input and answer; raise"):
        sampler_of(tiny_base, encoder, max_row_tokens=12)
    with pytest.raises(ConfigError, match="first has no row of at most 100 tokens"):
        sampler_of(tiny_base, encoder, tasks=[replace(TASKS[1], train=())])
    with pytest.raises(ConfigError, match="0 tasks of the folder and 4 groups"):
        sampler_of(tiny_base, encoder, tasks=[])
    with pytest.raises(ConfigError, match="0 procedural tasks and 2 groups"):
        sampler_of(tiny_base, encoder, synthetic_groups=2)
    with pytest.raises(ConfigError, match="3 procedural tasks and 0 groups"):
        TaskSampler(TASKS, tiny_base, encoder, CONFIG, 0, TASKS)
