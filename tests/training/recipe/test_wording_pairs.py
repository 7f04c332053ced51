from collections import Counter
from dataclasses import replace

import pytest

from llgbm.errors import ConfigError
from tests.training.recipe.sampler_runs import TASKS, task
from training.recipe.wording_pairs import Pair, PairSampler
from training.tasks.format import Task
from training.tasks.procedural_tasks import synthetic_tasks
from training.tasks.training_set import TrainingSet


def sisters(family: str, verbs: tuple[str, ...]) -> list[Task]:
    return [replace(task(f"{family}.{i}", verb, str.upper), family=family) for i, verb in enumerate(verbs)]


POOLS = TrainingSet(
    TASKS,
    synthetic_tasks(families=["letters", "votes", "markup"]),
    [one for i in range(9) for one in sisters(f"family_{i}", tuple(f"do {i} in way {j}" for j in range(8)))],
)


def owners(pairs: list[Pair]) -> list[Task]:
    found = {text: one for one in POOLS.all for text in one.seen_descriptions}
    return [found[pair.wording] for pair in pairs]


def test_most_of_a_batch_are_sisters_and_each_task_comes_once() -> None:
    sampler, families = PairSampler(POOLS, 0), set[str | None]()
    for step in range(20):
        tasks = owners(sampler(step))
        assert len({one.task_id for one in tasks}) == len(tasks)
        of_family = Counter(one.family for one in tasks if one in POOLS.relatives)
        of_kind = Counter(one.category for one in tasks if one in POOLS.synthetic)
        assert min(of_family.values()) > 1 < min(of_kind.values())
        assert of_family.total() > len(tasks) / 2
        assert 1 < len(of_family) < 9  # not all families, and other ones in other batches
        assert 1 < len(of_kind) < 3
        assert all(one in tasks for one in TASKS)
        families |= of_family.keys()
    assert len(families) == 9


def test_pairs_are_texts_of_one_task_that_may_be_trained_on() -> None:
    sampler = PairSampler(POOLS, 0)
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
    assert 0.1 < kinds["examples"] / kinds.total() < 0.5  # both kinds, and mostly wordings


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    sampler = PairSampler(POOLS, 0)
    later = sampler(5)
    assert PairSampler(POOLS, 0)(5) == later == sampler(5)
    assert sampler(6) != later != PairSampler(POOLS, 1)(5)


def test_a_task_without_a_wording_to_train_on_is_refused() -> None:
    alone = replace(TASKS[0], descriptions=("Do it.",))
    with pytest.raises(ConfigError, match="upper has no description to train on"):
        PairSampler(TrainingSet([alone, TASKS[1]], [], []), 0)


@pytest.mark.parametrize("pools", [TrainingSet([], [], []), TrainingSet(TASKS[:1], [], [])])
def test_fewer_than_two_tasks_cannot_be_told_apart(pools: TrainingSet) -> None:
    with pytest.raises(ConfigError, match="at least two tasks"):
        PairSampler(pools, 0)
