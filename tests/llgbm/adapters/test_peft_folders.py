"""The folder of an adapter: refusals, and the view of readers while it is replaced."""

import os
import pickle
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llgbm.adapters import peft_io
from llgbm.adapters.peft_io import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    content_digest,
    load_peft,
    save_peft,
)
from llgbm.config import LoRASpec, model_spec
from llgbm.errors import AdapterFormatError
from tests.fixtures import random_lora

TINY = model_spec("tiny")
SMALL = LoRASpec.for_model(TINY, rank=1, alpha=2.0, targets=("k_proj", "v_proj"), layers=(0,))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_peft(random_lora(SMALL, 0), tmp_path / "adapter", base_id=TINY.base_id)
    return tmp_path / "adapter"


def test_no_folder_and_empty_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AdapterFormatError, match="no adapter in"):
        load_peft(tmp_path / "nothing")
    with pytest.raises(AdapterFormatError, match=rf"{CONFIG_FILE} is missing"):
        load_peft(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(AdapterFormatError, match="no adapter in"):
        load_peft(tmp_path / "file")


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE])
def test_a_missing_file_is_refused(name: str, folder: Path) -> None:
    (folder / name).unlink()
    with pytest.raises(AdapterFormatError, match=f"{name} is missing"):
        load_peft(folder)


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE])
def test_a_symbolic_link_is_refused(name: str, folder: Path, tmp_path: Path) -> None:
    (folder / name).rename(tmp_path / name)
    (folder / name).symlink_to(tmp_path / name)
    with pytest.raises(AdapterFormatError, match=f"{name} is a symbolic link"):
        load_peft(folder)


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE])
@pytest.mark.parametrize("kind", [os.mkfifo, os.mkdir])
def test_a_pipe_or_a_folder_is_refused(kind: Callable[[Path], None], name: str, folder: Path) -> None:
    (folder / name).unlink()
    kind(folder / name)
    with pytest.raises(AdapterFormatError, match=name):
        load_peft(folder)


def test_a_pickle_is_not_opened(folder: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return pytest.fail, ("the pickle ran",)

    (folder / WEIGHTS_FILE).unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(AdapterFormatError, match=r"adapter_model\.bin is a pickle"):
        load_peft(folder)
    (folder / WEIGHTS_FILE).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(AdapterFormatError, match="is a pickle or a zip"):
        load_peft(folder)


@pytest.mark.parametrize(("name", "limit"), [(CONFIG_FILE, "MAX_CONFIG_BYTES"), (WEIGHTS_FILE, "MAX_WEIGHTS_BYTES")])
def test_an_oversized_file_is_refused(name: str, limit: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peft_io, limit, (folder / name).stat().st_size - 1)
    with pytest.raises(AdapterFormatError, match=f"{name} is larger than"):
        load_peft(folder)


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE])
def test_a_file_is_read_up_to_the_size_that_it_had(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stat_of, expected = os.fstat, content_digest(random_lora(SMALL, 0))

    def growing(handle: int) -> os.stat_result:
        status = stat_of(handle)
        if status.st_ino == (folder / name).stat().st_ino:
            with (folder / name).open("ab") as file:
                file.write(b"more")
        return status

    monkeypatch.setattr(os, "fstat", growing)
    assert content_digest(load_peft(folder)[0]) == expected


def test_reading_takes_the_room_of_the_files_and_not_that_of_the_limit(folder: Path) -> None:
    tracemalloc.start()
    try:
        load_peft(folder)
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


def test_errors_name_the_folder(folder: Path) -> None:
    (folder / CONFIG_FILE).write_text("[]")
    with pytest.raises(AdapterFormatError, match=str(folder)):
        load_peft(folder)


def test_saving_again_replaces_only_what_differs(folder: Path) -> None:
    before = folder.stat().st_ino
    save_peft(random_lora(SMALL, 0), folder, base_id=TINY.base_id)
    assert folder.stat().st_ino == before
    save_peft(random_lora(SMALL, 1), folder, base_id="other")
    weights, base_id = load_peft(folder)
    assert content_digest(weights) == content_digest(random_lora(SMALL, 1))
    assert base_id == "other"
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


@pytest.mark.parametrize("calls_before_failure", range(4))
def test_a_failing_disk_leaves_nothing_new(
    calls_before_failure: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, real_sync = [calls_before_failure], os.fsync

    def sync(handle: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        real_sync(handle)

    monkeypatch.setattr(os, "fsync", sync)
    with pytest.raises(OSError, match="No space left"):
        save_peft(random_lora(SMALL, 1), folder, base_id="b")
    found, _ = load_peft(folder)
    # the fourth sync is of the parent, after the rename
    assert content_digest(found) == content_digest(random_lora(SMALL, int(calls_before_failure == 3)))
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


def test_readers_see_whole_adapters_while_writers_replace_them(folder: Path) -> None:
    versions = [random_lora(SMALL, seed) for seed in range(3)]
    digests = {content_digest(w): i for i, w in enumerate(versions)}
    errors: list[Exception] = []

    def write(start: int) -> None:
        try:
            for i in range(12):
                which = (start + i) % 3
                save_peft(versions[which], folder, base_id=f"base-{which}")
        except Exception as error:
            errors.append(error)

    writers = [threading.Thread(target=write, args=(start,)) for start in range(2)]
    for writer in writers:
        writer.start()
    seen = 0
    while any(writer.is_alive() for writer in writers) or not seen:
        try:
            weights, base_id = load_peft(folder)
        except AdapterFormatError as error:
            # after the old folder is moved away and before the new one is in place
            if "no adapter in" not in str(error) and "is missing" not in str(error):
                raise
            continue
        seen += 1
        which = digests[content_digest(weights)]
        assert base_id in (f"base-{which}", TINY.base_id)
    for writer in writers:
        writer.join()
    assert not errors
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]
