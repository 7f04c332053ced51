import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llgbm.errors import TaskFormatError
from training.tasks.format import (
    Example,
    Task,
    load_task,
    load_tasks,
    save_task,
    tasks_digest,
    unique_descriptions,
    with_more_wordings,
    without_held_back,
)
from training.tasks.training_set import TrainingTasks


def record(**changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "task_id": "upper",
        "category": "strings",
        "source": "written for this test",
        "licence": "Apache-2.0",
        "descriptions": [
            "Write it in capitals.",
            "Use upper case.",
            "Shout the word.",
            "Capital letters only.",
        ],
        "metric": "exact_match",
        "label_set": None,
        "train": [{"input": "cat", "output": "CAT"}],
        "test": [{"input": "dog", "output": "DOG"}],
    }
    return base | changes


def write(folder: Path, **changes: Any) -> Path:
    data = record(**changes)
    path = folder / f"{data['task_id']}.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


def make_task(descriptions: tuple[str, ...]) -> Task:
    return Task("t", "c", "s", "l", descriptions, "exact_match", None, (), ())


def test_a_task_survives_being_written_and_read(tmp_path: Path) -> None:
    task = load_task(write(tmp_path, train=[{"input": "a", "output": "A", "alternatives": ["Ä"]}]))
    assert task.train == (Example("a", "A", ("Ä",)),)
    assert load_task(write(tmp_path, **task.to_dict())) == task


def test_accepted_starts_with_the_output_and_holds_nothing_twice() -> None:
    assert Example("in", "b", ("a", "b", "c", "a")).accepted == ("b", "a", "c")


@settings(deadline=None)
@given(st.integers(1, 60))
def test_descriptions_are_split_in_order_into_seen_and_unseen(n: int) -> None:
    task = make_task(tuple(f"wording {i}" for i in range(n)))
    assert task.seen_descriptions + task.unseen_descriptions == task.descriptions
    assert len(task.unseen_descriptions) == max(1, n // 4)


def test_a_single_description_is_unseen() -> None:
    task = make_task(("the only one",))
    assert task.seen_descriptions == ()
    assert task.unseen_descriptions == ("the only one",)


def test_a_wording_in_the_file_twice_is_kept_once(tmp_path: Path) -> None:
    task = load_task(write(tmp_path, descriptions=["Say it.", "Tell it.", "say  it."]))
    assert task.descriptions == ("Say it.", "Tell it.")


@settings(deadline=None)
@given(st.lists(st.sampled_from(["a b", "A  B", "a B", "c", "C ", "d"])))
def test_unique_descriptions_keeps_the_first_of_each(texts: list[str]) -> None:
    unique = unique_descriptions(texts)
    folded = [" ".join(t.split()).lower() for t in unique]
    assert len(set(folded)) == len(folded)
    assert set(folded) == {" ".join(t.split()).lower() for t in texts}
    assert unique_descriptions(unique) == unique


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": []}, r"label: unknown key; did you mean label_set\?"),
        ({"descriptions": []}, "descriptions: the list is empty"),
        ({"descriptions": ["  "]}, r"descriptions\[0\]: contains only white space"),
        ({"descriptions": "one"}, "descriptions: expected a list, got str"),
        ({"metric": "bleu"}, "metric: 'bleu' is not one of exact_match, exact_match_any"),
        ({"label_set": ["cat"]}, r"train\[0\].output: 'CAT' is not in label_set"),
        ({"train": [{"input": "cat"}]}, r"train\[0\].output: expected a text, got NoneType"),
        ({"train": [{"input": "1", "output": 1}]}, r"train\[0\].output: expected a text, got int"),
        ({"train": [{"input": "a", "output": " "}]}, r"train\[0\]: input and output must contain more"),
        ({"train": [{"input": "a", "output": "b", "note": ""}]}, r"train\[0\].note: unknown key"),
        ({"train": ["cat"]}, r"train\[0\]: expected an object, got str"),
        (
            {"test": [{"input": "cat", "output": "CAT"}]},
            "test: 1 inputs also occur in train, for example 'cat'",
        ),
        ({"task_id": "_x"}, "task_id: '_x' names files"),
    ],
)
def test_a_broken_file_is_refused_by_file_and_key(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = write(tmp_path, **changes)
    with pytest.raises(TaskFormatError, match=message) as caught:
        load_task(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("key", list(record()))
def test_every_key_is_needed(tmp_path: Path, key: str) -> None:
    data = record()
    del data[key]
    path = tmp_path / "upper.json"
    path.write_text(json.dumps(data))
    with pytest.raises(TaskFormatError, match=f"{key}: the key is missing"):
        load_task(path)


def test_a_task_under_another_name_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path).rename(tmp_path / "lower.json")
    with pytest.raises(TaskFormatError, match="is 'upper', but the file's name says 'lower'"):
        load_task(path)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe{}", b"[]"])
def test_what_is_not_a_json_object_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(TaskFormatError, match=r"x\.json"):
        load_task(path)


def test_a_folder_is_read_in_order_of_ids(tmp_path: Path) -> None:
    for task_id in ("b", "c", "a"):
        write(tmp_path, task_id=task_id)
    assert [t.task_id for t in load_tasks(tmp_path)] == ["a", "b", "c"]
    assert [t.task_id for t in load_tasks(tmp_path, ["c", "a", "c"])] == ["a", "c"]
    assert load_tasks(tmp_path, []) == []


def test_unknown_ids_are_named_with_close_ones(tmp_path: Path) -> None:
    write(tmp_path, task_id="boolq")
    with pytest.raises(TaskFormatError, match=r"no task 'bolq'; did you mean boolq\?; no task 'zzz'"):
        load_tasks(tmp_path, ["zzz", "bolq"])


def test_a_folder_without_tasks_says_where_they_are(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    write(tmp_path / "train")
    with pytest.raises(TaskFormatError, match="subfolders: train"):
        load_tasks(tmp_path)
    with pytest.raises(TaskFormatError, match="no such folder"):
        load_tasks(tmp_path / "nowhere")


def test_a_saved_task_reads_back_and_is_never_overwritten_by_another(tmp_path: Path) -> None:
    task = load_task(write(tmp_path))
    path = save_task(tmp_path / "new", task)
    assert load_task(path) == task
    assert save_task(tmp_path / "new", task) == path
    with pytest.raises(TaskFormatError, match="holds another task of this name"):
        save_task(tmp_path / "new", replace(task, source="elsewhere"))
    assert load_task(path) == task


def test_the_digest_follows_the_content_and_not_the_order() -> None:
    one, two = make_task(("a",)), replace(make_task(("a",)), task_id="u")
    assert tasks_digest([one, two]) == tasks_digest([two, one])
    assert tasks_digest([one]) != tasks_digest([two])
    assert tasks_digest([one]) != tasks_digest([replace(one, train=(Example("i", "o"),))])


def test_more_wordings_are_trained_on_and_change_the_digest_alone(tmp_path: Path) -> None:
    task = load_task(write(tmp_path))
    path = tmp_path / "wordings.json"
    path.write_text(json.dumps({task.task_id: ["another way to say it"], "unknown": ["whatever"]}), encoding="utf-8")
    (more,) = with_more_wordings([task], path)
    assert more.seen_descriptions == (*task.seen_descriptions, "another way to say it")
    assert more.unseen_descriptions == task.unseen_descriptions
    assert more.to_dict() == task.to_dict()
    assert tasks_digest([more]) != tasks_digest([task])


@pytest.mark.parametrize("place", ["seen_descriptions", "unseen_descriptions"])
def test_a_wording_that_the_task_has_is_refused(tmp_path: Path, place: str) -> None:
    task = load_task(write(tmp_path))
    path = tmp_path / "wordings.json"
    path.write_text(json.dumps({task.task_id: [getattr(task, place)[0].upper()]}), encoding="utf-8")
    with pytest.raises(TaskFormatError, match=rf"wordings\.json: {task.task_id}: .* is the same as"):
        with_more_wordings([task], path)


def test_no_task_is_trained_on_a_wording_that_another_holds_back(tmp_path: Path) -> None:
    one = load_task(write(tmp_path))
    held_back = one.unseen_descriptions[0]
    other = replace(one, task_id="other", descriptions=("a", held_back.upper(), "c", "d"), more_descriptions=("e",))
    kept, changed = without_held_back([one, other])
    assert kept == one
    assert changed.seen_descriptions == ("a", "c", "e")
    assert changed.unseen_descriptions == ("d",)
    assert changed.to_dict() == other.to_dict()
    assert tasks_digest([changed]) != tasks_digest([other])


@pytest.mark.parametrize("content", ["", "[]", '{"a": "b"}', '{"a": [1]}'])
def test_a_file_that_holds_no_wordings_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "wordings.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(TaskFormatError, match=r"wordings\.json: (is not JSON|must be a JSON object)"):
        with_more_wordings([load_task(write(tmp_path))], path)


def test_pools_keep_from_training_what_a_task_of_the_folder_holds_back(tmp_path: Path) -> None:
    one = load_task(write(tmp_path))
    other = replace(
        one, task_id="other", descriptions=(*(f"wording {i}" for i in range(3)), one.unseen_descriptions[0], "last")
    )
    save_task(tmp_path, other)
    tasks, *_ = TrainingTasks(tmp_path).training_set()
    found = {task.task_id: task for task in tasks}
    assert found["other"].seen_descriptions == ("wording 0", "wording 1", "wording 2")
    assert found[one.task_id].seen_descriptions == one.seen_descriptions
