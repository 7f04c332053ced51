from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from llgbm.errors import ConfigError
from tests.training.recipe.sampler_runs import TASKS, task
from training.recipe.wording_pairs import Pair, PairConfig, PairSampler
from training.tasks.format import Task
from training.tasks.procedural_tasks import synthetic_tasks
from training.tasks.training_set import TrainingSet


def sisters(family: str, verbs: tuple[str, ...]) -> list[Task]:
    return [replace(task(f"{family}.{i}", verb, str.upper), family=family) for i, verb in enumerate(verbs)]


POOLS = TrainingSet(
    TASKS,
    synthetic_tasks(families=["letters", "votes"], limit=6),
    [
        *sisters("letters", ("give the last letter", "give the second letter", "write it twice")),
        *sisters("sizes", ("count the letters", "count the vowels")),
        *sisters("plants", ("name the plant", "name the colour")),
    ],
)
BATCH = PairConfig(families=2, sisters=2, synthetic_families=1, synthetic_sisters=3, own_tasks=2)


def owners(pairs: list[Pair]) -> list[Task]:
    found = {text: one for one in POOLS.all for text in one.seen_descriptions}
    return [found[pair.wording] for pair in pairs]


def test_a_batch_has_sisters_and_each_task_once() -> None:
    for step in range(20):
        tasks = owners(PairSampler(POOLS, BATCH, 0)(step))
        assert len({one.task_id for one in tasks}) == len(tasks)
        assert sorted(Counter(one.family for one in tasks if one.family).values()) == [2, 2]
        assert len({one.category for one in tasks[4:7]}) == 1
        assert all(one in TASKS for one in tasks[7:])
        assert len(tasks) == 9


def test_pairs_are_texts_of_one_task_that_may_be_trained_on() -> None:
    sampler = PairSampler(POOLS, replace(BATCH, example_fraction=0.5), 0)
    kinds: Counter[str] = Counter()
    for step in range(40):
        pairs = sampler(step)
        for one, pair in zip(owners(pairs), pairs, strict=True):
            lines = {f"{row.input} -> {row.output}" for row in one.train}
            if len(pair.others) == 1:
                assert pair.others[0] in one.seen_descriptions
                assert pair.others[0] != pair.wording
                kinds["wordings"] += 1
            else:
                assert len(set(pair.others)) == 3
                assert set(pair.others) <= lines
                kinds["examples"] += 1
    assert 0.4 < kinds["examples"] / kinds.total() < 0.6


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    sampler = PairSampler(POOLS, BATCH, 0)
    later = sampler(5)
    assert PairSampler(POOLS, BATCH, 0)(5) == later == sampler(5)
    assert sampler(6) != later != PairSampler(POOLS, BATCH, 1)(5)


def test_a_task_without_a_wording_to_train_on_is_refused() -> None:
    alone = replace(TASKS[0], descriptions=("Do it.",))
    with pytest.raises(ConfigError, match="upper has no description to train on"):
        PairSampler(TrainingSet([alone, TASKS[1]], [], []), BATCH, 0)


@pytest.mark.parametrize("pools", [TrainingSet([], [], []), TrainingSet(TASKS[:1], [], [])])
def test_fewer_than_two_tasks_cannot_be_told_apart(pools: TrainingSet) -> None:
    with pytest.raises(ConfigError, match="at least two tasks"):
        PairSampler(pools, BATCH, 0)


@pytest.mark.parametrize("change", [{"families": -1}, {"num_examples": 0}, {"example_fraction": 1.5}])
def test_settings_out_of_range_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="counts of a batch"):
        PairConfig(**change)
