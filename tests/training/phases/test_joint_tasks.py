import pytest
from hypothesis import given
from hypothesis import strategies as st

from llgbm.errors import ConfigError
from tests.training.conftest import small_task, small_tasks
from training.phases.joint_tasks import choose_pairs, joint_task, then_prompt

TASKS = {task.task_id: task for task in small_tasks()}


def test_the_joint_task_has_the_rows_of_both_in_turn() -> None:
    joint = joint_task(TASKS["upper"], TASKS["next"])
    assert joint.task_id == "upper.and.next"
    assert set(joint.train) == {*TASKS["upper"].train, *TASKS["next"].train}
    assert joint.train[0] == TASKS["upper"].train[0]
    assert joint.train[1] == TASKS["next"].train[0]
    assert set(joint.test) == {*TASKS["upper"].test, *TASKS["next"].test}
    assert all("First: " in text and " Then: " in text for text in joint.descriptions)


def test_an_input_of_both_tasks_is_in_no_row() -> None:
    one = small_task("one", "x", "do", [str(i) for i in range(8)], ["a"] * 8)
    other = small_task("other", "y", "try", [str(i) for i in range(4, 12)], ["b"] * 8)
    joint = joint_task(one, other)
    assert {e.input for e in joint.train + joint.test}.isdisjoint({"4", "5", "6", "7"})


def test_unseen_wordings_of_the_parts_are_in_no_description() -> None:
    joint = joint_task(TASKS["upper"], TASKS["next"])
    for task in (TASKS["upper"], TASKS["next"]):
        assert not any(text in wording for text in task.unseen_descriptions for wording in joint.descriptions)


@given(st.integers(1, 8), st.integers(0, 30))
def test_pairs_are_of_two_categories_and_share_no_input(count: int, seed: int) -> None:
    pairs = choose_pairs(list(TASKS.values()), count, seed)
    assert len(pairs) == count
    assert len({frozenset(t.task_id for t in pair) for pair in pairs}) == count
    for a, b in pairs:
        assert a.category != b.category
        assert not {e.input for e in a.train} & {e.input for e in b.train}
    if count <= 2:
        assert len({t.task_id for pair in pairs for t in pair}) == 2 * count


def test_tasks_of_one_category_make_no_pair() -> None:
    with pytest.raises(ConfigError, match="no two teachers are of different categories"):
        choose_pairs([TASKS["upper"], TASKS["title"]], 1, 0)


def test_the_prompt_names_both() -> None:
    assert then_prompt("Do A. ", "Do B.") == "First: Do A. Then: Do B."
