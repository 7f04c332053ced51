"""The workdir: prompts and index round trip, folders are enough, and errors name the damage."""

from pathlib import Path

import pytest

from llgbm.adapters.index import (
    INDEX_FILE,
    PROMPTS_FILE,
    AdapterEntry,
    AdapterPrompts,
    load_index,
    load_prompts,
    save_index,
    save_prompts,
)
from llgbm.adapters.peft_io import save_peft
from llgbm.config import LoRASpec, model_spec
from llgbm.errors import TaskFormatError
from tests.fixtures import random_lora

TINY = model_spec("tiny")
PROMPTS = AdapterPrompts(("Reverse the word.", "Write it backwards: é"), (("abc", "cba"), ("x", "x")))


def make_adapter(folder: Path, seed: int) -> AdapterEntry:
    save_peft(random_lora(LoRASpec.for_model(TINY, rank=2), seed), folder, base_id=TINY.base_id)
    save_prompts(folder, PROMPTS)
    return AdapterEntry(folder.name, folder.parent.name, folder)


def test_prompts_round_trip(tmp_path: Path) -> None:
    save_prompts(tmp_path, PROMPTS)
    assert load_prompts(tmp_path) == PROMPTS
    assert AdapterEntry("a", "t", tmp_path).read_prompts() == PROMPTS
    mine = AdapterPrompts(("Mine.",))
    assert AdapterEntry("a", "t", tmp_path, mine).read_prompts() == mine


def test_a_plain_list_of_prompts_is_read(tmp_path: Path) -> None:
    (tmp_path / PROMPTS_FILE).write_text('["one", "two"]')
    assert load_prompts(tmp_path) == AdapterPrompts(("one", "two"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "3",
        "[]",
        "{}",
        '{"descriptions": [1]}',
        '{"descriptions": ["a"], "examples": [{"input": "x"}]}',
        '[" "]',
    ],
)
def test_damaged_prompts_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / PROMPTS_FILE).write_text(text)
    with pytest.raises(TaskFormatError, match=PROMPTS_FILE):
        load_prompts(tmp_path)
    with pytest.raises(TaskFormatError, match="missing"):
        load_prompts(tmp_path / "nowhere")


def test_index_and_folders_give_the_same_adapters(tmp_path: Path) -> None:
    entries = [make_adapter(tmp_path / task / f"{task}_{i:03d}", i) for task in ("arc_e", "boolq") for i in range(2)]
    (tmp_path / "deltas").mkdir()
    by_folder = load_index(tmp_path)
    assert by_folder == entries
    save_index(tmp_path, entries)
    assert load_index(tmp_path) == entries
    save_index(tmp_path, entries[:1])
    assert load_index(tmp_path) == entries[:1]


def test_a_folder_that_moves_keeps_its_index(tmp_path: Path) -> None:
    entry = make_adapter(tmp_path / "old" / "t" / "t_000", 1)
    save_index(tmp_path / "old", [entry])
    (tmp_path / "old").rename(tmp_path / "new")
    assert load_index(tmp_path / "new")[0].folder == tmp_path / "new" / "t" / "t_000"


@pytest.mark.parametrize(
    "text", ["", "{", "{}", "[]", '{"version": 2, "adapters": []}', '{"version": 1, "adapters": [{"id": "a"}]}']
)
def test_a_damaged_index_is_refused(tmp_path: Path, text: str) -> None:
    make_adapter(tmp_path / "t" / "t_000", 1)
    (tmp_path / INDEX_FILE).write_text(text)
    with pytest.raises(TaskFormatError, match=INDEX_FILE):
        load_index(tmp_path)


def test_an_empty_workdir_and_double_ids_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskFormatError, match="no adapters in"):
        load_index(tmp_path)
    entry = make_adapter(tmp_path / "t" / "t_000", 1)
    with pytest.raises(TaskFormatError, match="twice"):
        save_index(tmp_path, [entry, entry])
    with pytest.raises(TaskFormatError, match="not below"):
        save_index(tmp_path / "other", [entry])
