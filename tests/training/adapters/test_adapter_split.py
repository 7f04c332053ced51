from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llgbm.adapters.index import AdapterEntry, AdapterPrompts, load_index
from llgbm.adapters.peft_io import load_peft, save_peft
from llgbm.errors import ConfigError, TaskFormatError
from tests.training.conftest import small_tasks
from training.adapters.adapter_split import UNKNOWN, family_of, split_adapters, split_digest, tasks_by_id
from training.tasks.format import Task

TASKS = {task.task_id: task for task in small_tasks()}


def entry(task: str, index: int = 0, *, prompts: AdapterPrompts | None = None) -> AdapterEntry:
    known = TASKS.get(task)
    own = prompts or AdapterPrompts(known.seen_descriptions if known else ("one", "two", "three", "four"))
    return AdapterEntry(f"{task}_{index:03d}", task, Path(task), own)


ENTRIES = [entry(task, index) for task in TASKS for index in range(2)]


@given(st.floats(0, 0.99), st.integers(0, 50))
def test_no_task_is_on_both_sides_and_every_family_keeps_one(share: float, seed: int) -> None:
    split = split_adapters(ENTRIES, TASKS, heldout_share=share, seed=seed)
    train, held = {e.task for e in split.train}, {e.task for e in split.heldout}
    assert not train & held
    assert len(split.train) + len(split.heldout) == len(ENTRIES)
    assert {TASKS[t].category for t in train} == {"case", "numbers", "pick"}
    assert bool(held) == (share > 0)
    assert split == split_adapters(ENTRIES, TASKS, heldout_share=share, seed=seed)


@given(st.integers(0, 50))
def test_no_description_is_trained_on_and_measured_with(seed: int) -> None:
    for tasks in (TASKS, dict[str, Task]()):
        split = split_adapters(ENTRIES, tasks, heldout_share=0.3 if tasks else 0.1, seed=seed)
        for one in (*split.train, *split.heldout):
            assert one.prompts is not None
            assert one.prompts.descriptions
            assert split.unseen[one.adapter_id]
            assert not set(one.prompts.descriptions) & set(split.unseen[one.adapter_id])


def test_no_adapter_is_trained_on_what_another_is_measured_with() -> None:
    borrowed = TASKS["next"].unseen_descriptions[0].upper()
    upper = entry("upper", prompts=AdapterPrompts((*TASKS["upper"].seen_descriptions, borrowed)))
    split = split_adapters([upper, entry("next")], TASKS, heldout_share=0, seed=0)
    assert split.train[0].read_prompts().descriptions == TASKS["upper"].seen_descriptions


def test_with_a_task_file_its_own_split_of_the_wordings_holds() -> None:
    leaking = entry("upper", prompts=AdapterPrompts(tuple(t.upper() for t in TASKS["upper"].descriptions)))
    split = split_adapters([leaking], TASKS, heldout_share=0, seed=0)
    assert split.unseen["upper_000"] == TASKS["upper"].unseen_descriptions
    assert split.train[0].read_prompts().descriptions == tuple(t.upper() for t in TASKS["upper"].seen_descriptions)


def test_without_a_file_the_last_quarter_is_kept_back() -> None:
    split = split_adapters([entry("strange")], {}, heldout_share=0, seed=0)
    assert split.unseen["strange_000"] == ("four",)
    assert split.train[0].read_prompts().descriptions == ("one", "two", "three")
    assert family_of(entry("strange"), TASKS) == UNKNOWN


def test_a_family_of_one_gives_nothing_away() -> None:
    with pytest.raises(ConfigError, match="no family has two tasks"):
        split_adapters([entry("upper"), entry("next")], TASKS, heldout_share=0.5, seed=0)


def test_an_adapter_with_nothing_left_to_train_on_is_refused() -> None:
    with pytest.raises(ConfigError, match="none to train on"):
        split_adapters([entry("strange", prompts=AdapterPrompts(("one",)))], {}, heldout_share=0, seed=0)
    examples_only = entry("strange", prompts=AdapterPrompts(("one",), (("a", "b"),)))
    assert split_adapters([examples_only], {}, heldout_share=0, seed=0).train[0].read_prompts().descriptions == ()


def test_the_digest_tells_adapters_sides_and_prompts_apart(workdir: Path) -> None:
    split = split_adapters(load_index(workdir), TASKS, heldout_share=0.25, seed=0)
    one = split.train[0]
    assert one.prompts is not None
    other_prompts = replace(one, prompts=replace(one.prompts, descriptions=("Do something else.",)))
    digests = [
        split_digest(changed)
        for changed in (
            split,
            replace(split, train=split.train[1:]),
            replace(split, train=split.train[1:], heldout=(*split.heldout, one)),
            replace(split, train=(other_prompts, *split.train[1:])),
            replace(split, unseen={**split.unseen, one.adapter_id: ("Do something else.",)}),
        )
    ]
    assert split_digest(split) == digests[0]
    weights, base_id = load_peft(one.folder)
    save_peft(weights.scaled(0.5), one.folder, base_id=base_id)
    digests.append(split_digest(split))
    assert len(set(digests)) == len(digests)


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_a_share_out_of_range_is_refused(share: float) -> None:
    with pytest.raises(ConfigError, match="heldout_share must be"):
        split_adapters(ENTRIES, TASKS, heldout_share=share, seed=0)


def test_tasks_by_id_needs_a_folder_with_tasks_or_none(tasks_folder: Path, tmp_path: Path) -> None:
    assert tasks_by_id(tasks_folder) == TASKS
    assert tasks_by_id(None) == {}
    with pytest.raises(TaskFormatError, match="holds no task files"):
        tasks_by_id(tmp_path)
