from pathlib import Path

import pytest

from llgbm.errors import TaskFormatError
from training.tasks.families import TEST_ROWS, load_families, load_family

HEAD = """family: parcels
category: logistics
task: status
labels: delayed, delivered
d: Name the status: delayed or delivered.
d: parcel status
d: Is it there yet? Answer delayed or delivered.
d: status, one word
task: reply
category: writing
exact: no
d: Answer the customer in one line.
d: Write a short reply.
"""


def rows(count: int = 24) -> list[str]:
    return [f"parcel {i} || {'delayed' if i % 2 else 'delivered'} || Dear customer,\\nno {i}" for i in range(count)]


def write(folder: Path, head: str = HEAD, lines: list[str] | None = None, name: str = "parcels") -> Path:
    path = folder / f"{name}.txt"
    path.write_text(head + "---\n" + "\n".join(rows() if lines is None else lines) + "\n", encoding="utf-8")
    return path


def test_every_task_of_a_family_has_its_own_answers_to_the_shared_inputs(tmp_path: Path) -> None:
    status, reply = load_family(write(tmp_path))
    assert (status.task_id, reply.task_id) == ("parcels.status", "parcels.reply")
    assert (status.family, reply.family) == ("parcels", "parcels")
    assert (status.category, reply.category) == ("logistics", "writing")
    assert (status.metric, reply.metric) == ("exact_match", "log_likelihood")
    assert status.label_set == ("delayed", "delivered")
    assert reply.label_set is None
    assert [row.input for row in status.train] == [row.input for row in reply.train]
    assert reply.train[0].output == "Dear customer,\nno 0"
    assert [row.input for row in status.test] == [f"parcel {i}" for i in range(24 - TEST_ROWS, 24)]
    assert len(status.train) == 24 - TEST_ROWS
    assert status.seen_descriptions == status.descriptions[:3]


def test_a_dash_leaves_a_row_out_of_one_task(tmp_path: Path) -> None:
    lines = rows()
    lines[3] = "parcel 3 || - || Dear customer"
    status, reply = load_family(write(tmp_path, lines=lines))
    assert "parcel 3" not in {row.input for row in status.train}
    assert "parcel 3" in {row.input for row in reply.train}


def test_a_folder_is_read_family_by_family(tmp_path: Path) -> None:
    write(tmp_path)
    write(tmp_path, HEAD.replace("family: parcels", "family: letters"), name="letters")
    assert [task.task_id for task in load_families(tmp_path)] == [
        "letters.status", "letters.reply", "parcels.status", "parcels.reply",
    ]  # fmt: skip
    assert {task.family for task in load_families(tmp_path, ["parcels"])} == {"parcels"}
    with pytest.raises(TaskFormatError, match="no family 'boxes'"):
        load_families(tmp_path, ["boxes"])
    with pytest.raises(TaskFormatError, match="no such folder"):
        load_families(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(TaskFormatError, match="holds no family files"):
        load_families(tmp_path / "empty")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("family: parcels", "family: boxes", "the file's name says 'parcels'"),
        ("category: logistics\n", "", "category: the line is missing"),
        ("exact: no", "exact: maybe", "'exact' does not belong there"),
        ("d: parcel status", "d: NAME the status: delayed or delivered.", "status: descriptions.*is the same"),
        ("task: reply", "task: status", "line 9: there are two tasks called 'status'"),
        ("d: parcel status", "parcel status", "line 6: 'parcel status' is not 'key: value'"),
        ("labels: delayed, delivered", "labels: delayed, lost", "status: train.*'delivered' is not in label_set"),
        ("---\n", "", "has no line '---'"),
        ("parcel 5 || delayed", "parcel 5", "line 20: needs an input and 2 answers"),
        ("parcel 5 ||", "parcel 4 ||", "duplicate input 'parcel 4'"),
    ],
)
def test_faults_are_named_with_file_and_place(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = write(tmp_path)
    text = path.read_text("utf-8")
    assert text.count(old) == 1 or old == "---\n"
    path.write_text(text.replace(old, new), "utf-8")
    with pytest.raises(TaskFormatError, match=message) as caught:
        load_family(path)
    assert str(path) in str(caught.value)


def test_a_task_needs_rows_to_train_on(tmp_path: Path) -> None:
    with pytest.raises(TaskFormatError, match="status: 4 training rows; a task needs 10"):
        load_family(write(tmp_path, lines=rows(12)))
