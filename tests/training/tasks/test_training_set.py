from pathlib import Path

import pytest

from llgbm.errors import ConfigError, TaskFormatError
from tests.training.tasks.test_families import HEAD, write
from training.tasks.training_set import TrainingTasks, hidden_tasks


@pytest.fixture
def families(tmp_path: Path) -> Path:
    write(tmp_path)
    write(tmp_path, HEAD.replace("family: parcels", "family: letters"), name="letters")
    return tmp_path


def test_a_newcomer_trains_on_families_and_procedural_tasks_alone(families: Path) -> None:
    found = TrainingTasks(None, families=families, synthetic_tasks=3).training_set()
    assert found.own == []
    assert len(found.synthetic) == 3
    assert [task.task_id for task in found.relatives] == [
        "letters.status", "letters.reply", "parcels.status", "parcels.reply",
    ]  # fmt: skip
    assert found.all == [*found.synthetic, *found.relatives]


def test_hidden_families_of_both_kinds_are_kept_from_training(families: Path) -> None:
    hidden = ("votes", "parcels")
    found = TrainingTasks(None, families=families, synthetic_tasks=1000, hidden_families=hidden).training_set()
    kept = hidden_tasks(hidden, families, 2)
    assert [task.task_id for task in kept][2:] == ["parcels.status", "parcels.reply"]
    assert all(task.category.endswith("votes") for task in kept[:2])
    assert not {task.task_id for task in kept} & {task.task_id for task in found.all}


def test_a_wording_that_a_task_holds_back_is_not_trained_on_for_another(families: Path) -> None:
    found = TrainingTasks(None, families=families).training_set()
    status = found.relatives[0]
    assert status.unseen_descriptions == ("status, one word",)
    assert all("status, one word" not in task.seen_descriptions for task in found.all)


def test_a_hidden_family_that_is_not_there_is_named(families: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean votes"):
        hidden_tasks(("vote",), None)
    with pytest.raises(TaskFormatError, match="no family 'boxes'"):
        hidden_tasks(("boxes",), families)
