"""The family files of the repository: each is whole, and nothing held out is trained on."""

from collections import Counter
from pathlib import Path

import pytest

from training.tasks.families import TEST_ROWS, load_families
from training.tasks.format import Task, folded

FOLDER = Path(__file__).parents[3] / "families"


@pytest.fixture(scope="module")
def train() -> list[Task]:
    return load_families(FOLDER / "train")


@pytest.fixture(scope="module")
def heldout() -> list[Task]:
    return load_families(FOLDER / "heldout")


def test_the_readme_counts_what_is_there(train: list[Task], heldout: list[Task]) -> None:
    text = (FOLDER / "README.md").read_text("utf-8")
    for folder, tasks in (("train", train), ("heldout", heldout)):
        assert f"| `{folder}/` | {len({t.family for t in tasks})} | {len(tasks):,} |" in text


def test_no_family_is_in_both_folders(train: list[Task], heldout: list[Task]) -> None:
    assert not {t.family for t in train} & {t.family for t in heldout}


def test_no_wording_of_a_task_held_out_is_trained_on(train: list[Task], heldout: list[Task]) -> None:
    trained = {folded(text) for task in train for text in task.descriptions}
    found = [(t.task_id, text) for t in heldout for text in t.descriptions if folded(text) in trained]
    assert not found, found[:5]


def test_a_task_has_rows_to_measure_on_and_answers_that_differ(train: list[Task], heldout: list[Task]) -> None:
    for task in (*train, *heldout):
        answers = Counter(row.output for row in task.train)
        assert 1 <= len(task.test) <= TEST_ROWS, task.task_id
        assert len(task.descriptions) >= 5, task.task_id
        if task.metric == "exact_match":
            assert answers.most_common(1)[0][1] <= 0.75 * len(task.train), (task.task_id, answers.most_common(2))


def test_sisters_answer_the_same_inputs_differently(train: list[Task]) -> None:
    families: dict[str | None, list[Task]] = {}
    for task in train:
        families.setdefault(task.family, []).append(task)
    for name, tasks in families.items():
        assert len(tasks) >= 4, name
        columns = [tuple(row.output for row in task.train) for task in tasks]
        assert len(set(columns)) == len(columns), name
