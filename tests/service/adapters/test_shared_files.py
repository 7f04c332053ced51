"""A store at an fsspec address, used by two machines: two folders of copies for one address."""

from __future__ import annotations

import errno
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llgbm.adapters.peft_io import content_digest
from llgbm.config import lora_spec
from llgbm.errors import ConfigError
from llgbm.lora import LoRAWeights
from service.adapters.errors import AdapterDamagedError, StoreFullError, StoreUnavailableError
from service.adapters.records import CONFIG_FILE, RECORD_FILE, WEIGHTS_FILE
from service.adapters.shared_files import SharedFiles, open_files
from tests.fixtures import random_lora
from tests.service.adapters.conftest import Pair
from tests.service.support.records import identity, record


@pytest.fixture(scope="module")
def weights() -> LoRAWeights:
    return random_lora(lora_spec("tiny"), 1)


@pytest.fixture(params=["memory", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"memory://{uuid.uuid4().hex}/store" if request.param == "memory" else f"file://{tmp_path}/shared/store"


def test_an_upload_without_its_record_is_no_adapter(pair: Pair, weights: LoRAWeights, no_delay: None) -> None:
    one, two = pair
    one._fs.makedirs(one._at(identity(4)))
    one._fs.pipe_file(one._at(identity(4), WEIGHTS_FILE), b"the writer was killed before it came to the record")
    assert not two.exists(identity(4))
    assert two.records() == []
    assert two.write(weights, record(weights, 4))[1]
    assert content_digest(one.read(identity(4))) == content_digest(weights)


def test_of_two_that_write_at_once_the_first_record_stays(
    pair: Pair, weights: LoRAWeights, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = pair
    put: Any = two._put_record

    def overtaken(mine: Any) -> bool:
        one.write(weights, record(weights, created=1))
        made: bool = put(mine)
        return made

    monkeypatch.setattr(two, "_put_record", overtaken)
    stored, made = two.write(weights, record(weights, created=2))
    assert (stored.created, made) == (1, False)
    assert content_digest(two.read(stored.id)) == content_digest(weights)


@pytest.mark.parametrize("last", ["one", "two"])
def test_of_two_that_write_other_bytes_at_once_the_record_is_that_of_the_files(
    pair: Pair, weights: LoRAWeights, monkeypatch: pytest.MonkeyPatch, no_delay: None, last: str
) -> None:
    """Two processors may round differently. The store has a consistent adapter, no matter which machine writes last."""
    one, two = pair
    other = random_lora(lora_spec("tiny"), 2)
    put: Any = two._put_record

    def overtaken(mine: Any) -> bool:
        files = {name: two._fs.cat_file(two._at(mine.id, name)) for name in (CONFIG_FILE, WEIGHTS_FILE)}
        one.write(weights, record(weights, created=1))
        if last == "two":
            for name, content in files.items():
                two._fs.pipe_file(two._at(mine.id, name), content)
        made: bool = put(mine)
        return made

    monkeypatch.setattr(two, "_put_record", overtaken)
    stored, made = two.write(other, record(other, created=2))
    assert (stored.created, made) == ((2, False) if last == "two" else (1, False))
    for files in (SharedFiles(two.folder.parent / "three", f"{one._fs.unstrip_protocol(one._root)}"), two):
        assert content_digest(files.read(stored.id)) == content_digest(other if last == "two" else weights)


def test_a_record_of_what_was_made_anew_replaces_the_one_that_was_read(
    pair: Pair, weights: LoRAWeights, no_delay: None
) -> None:
    one, two = pair
    stored, _ = one.write(weights, record(weights))
    assert two.records() == [stored]
    other = random_lora(lora_spec("tiny"), 2)
    one.discard(stored.id)
    again, _ = one.write(other, record(other, created=5))
    assert content_digest(two.read(stored.id)) == content_digest(other)
    assert two.record(stored.id) == again


@pytest.mark.parametrize(
    "error", [ConnectionError("no route"), PermissionError("expired"), ValueError("of the backend")]
)
def test_an_outage_is_no_absence(
    pair: Pair, weights: LoRAWeights, no_delay: None, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    one, two = pair
    stored, _ = one.write(weights, record(weights))
    two.local(stored.id)

    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    for name in ("info", "cat_file", "pipe_file", "put_file", "ls"):
        monkeypatch.setattr(two._fs._fs, name, fail)
    calls: list[Callable[[], object]] = [
        lambda: two.exists(stored.id),
        lambda: two.local(stored.id),
        lambda: two.write(weights, record(weights, 2)),
        lambda: two.name("french", stored.id),
        two.records,
    ]
    for call in calls:
        with pytest.raises(StoreUnavailableError, match=f"does not answer: {type(error).__name__}"):
            call()
    assert (two.folder / stored.id).is_dir()


def test_a_full_disk_here_says_so(pair: Pair, weights: LoRAWeights, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = pair
    stored, _ = one.write(weights, record(weights))

    def fail(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(two._fs._fs, "get_file", fail)
    with pytest.raises(StoreFullError, match=f"no room in the store for a copy of {stored.id}"):
        two.local(stored.id)


def test_a_deletion_takes_all_copies_away(pair: Pair, weights: LoRAWeights, no_delay: None) -> None:
    one, two = pair
    stored, _ = one.write(weights, record(weights))
    two.local(stored.id)
    assert two.delete(stored.id)
    assert not one.exists(stored.id)
    assert list(one.folder.iterdir()) == list(two.folder.iterdir()) == []


def test_a_name_is_free_after_an_interrupted_deletion(pair: Pair, weights: LoRAWeights, no_delay: None) -> None:
    one, two = pair
    for number in (1, 2):
        one.write(weights, record(weights, number))
    one.name("french", identity(1))
    one._fs.rm_file(one._at(identity(1), RECORD_FILE))
    two.name("french", identity(2))
    assert one.resolve("french") == identity(2)


def test_an_adapter_that_was_made_anew_replaces_the_copy(pair: Pair, weights: LoRAWeights, no_delay: None) -> None:
    one, two = pair
    stored, _ = one.write(weights, record(weights))
    two.local(stored.id)
    other = random_lora(lora_spec("tiny"), 2)
    one.discard(stored.id)
    one.write(other, record(other))
    fresh = SharedFiles(two.folder, f"{one._fs.unstrip_protocol(one._root)}")
    assert content_digest(fresh.read(stored.id)) == content_digest(other)


def test_files_that_are_not_those_of_the_record_are_refused(pair: Pair, weights: LoRAWeights) -> None:
    one, two = pair
    stored, _ = one.write(weights, record(weights))
    one._fs.pipe_file(one._at(stored.id, CONFIG_FILE), b"{}")
    with pytest.raises(AdapterDamagedError, match="is not the one of its record"):
        two.read(stored.id)
    assert list(two.folder.iterdir()) == []


def test_an_address_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="LLGBM_STORE_URL 'nonsense://x' cannot be opened"):
        open_files(tmp_path, "nonsense://x")


def test_who_looks_for_an_adapter_that_is_being_uploaded_does_not_take_it_away(
    pair: Pair, weights: LoRAWeights, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = pair
    same_folder = SharedFiles(one.folder, one._fs.unstrip_protocol(one._root))
    mine = record(weights)
    put = one._fs.put_file
    looked: list[object] = []

    def put_slowly(*args: Any, **kwargs: Any) -> None:
        looked.extend([files.record(mine.id) for files in (one, two, same_folder)])
        put(*args, **kwargs)

    monkeypatch.setattr(one._fs, "put_file", put_slowly)
    stored, made = one.write(weights, mine)
    assert made
    assert looked == [None] * 6
    assert content_digest(one.read(stored.id)) == content_digest(weights)
    assert two.record(stored.id) == stored
