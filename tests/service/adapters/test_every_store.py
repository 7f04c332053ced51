"""The laws of every store, seen from two processes or machines: a folder, and stores at fsspec addresses."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from llgbm.adapters.peft_io import content_digest, load_peft
from llgbm.config import lora_spec
from service.adapters.errors import NameTakenError
from service.adapters.files import AdapterFiles
from service.adapters.records import CONFIG_FILE, RECORD_FILE, WEIGHTS_FILE
from service.adapters.shared_files import SharedFiles, open_files
from tests.fixtures import random_lora
from tests.service.support.records import BASE, identity, record

WEIGHTS = random_lora(lora_spec("tiny"), 1)
Two = tuple[AdapterFiles, AdapterFiles]


@pytest.fixture(params=["folder", "memory", "file"])
def two(request: pytest.FixtureRequest, tmp_path: Path, no_delay: None) -> Two:
    if request.param == "folder":
        return AdapterFiles(tmp_path / "store"), AdapterFiles(tmp_path / "store")
    url = f"memory://{uuid.uuid4().hex}/store" if request.param == "memory" else f"file://{tmp_path}/shared/store"
    return open_files(tmp_path / "one", url), open_files(tmp_path / "two", url)


def test_what_one_writes_the_other_reads_as_a_peft_folder_and_the_first_one_stays(two: Two) -> None:
    one, other = two
    stored, made = one.write(WEIGHTS, record(WEIGHTS))
    assert made
    assert one.record(stored.id) == other.record(stored.id) == stored
    assert content_digest(other.read(stored.id)) == content_digest(WEIGHTS) == stored.digest
    folder = other.local(stored.id)
    assert load_peft(folder)[1] == BASE
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        assert stored.files[name].bytes == (folder / name).stat().st_size
    assert other.write(WEIGHTS, record(WEIGHTS, created=9)) == (stored, False)
    assert [path.name for path in other.folder.iterdir()] == [stored.id]


def test_the_newest_comes_first(two: Two) -> None:
    one, other = two
    for number in (1, 2, 3):
        one.write(WEIGHTS, record(WEIGHTS, number, created=number % 3))
    assert [r.id for r in other.records()] == [identity(2), identity(1), identity(3)]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"id": 3}'])
def test_an_adapter_without_a_readable_record_is_replaced(two: Two, content: str) -> None:
    one, other = two
    stored, _ = one.write(WEIGHTS, record(WEIGHTS))
    if isinstance(one, SharedFiles):
        one._fs.pipe_file(one._at(stored.id, RECORD_FILE), content.encode())
    else:
        (one.path(stored.id) / RECORD_FILE).write_text(content)
    assert other.record(stored.id) is None
    again, made = other.write(WEIGHTS, record(WEIGHTS, created=2))
    assert made
    assert other.record(stored.id) == again
    assert content_digest(other.read(stored.id)) == content_digest(WEIGHTS)


@pytest.mark.parametrize("bad", ["", ".", "..", "../store", "lora 1", "/etc/passwd", ".hidden", "x" * 65, "a\0b"])
def test_a_text_that_is_no_id_and_no_name_never_reaches_the_store(two: Two, bad: str) -> None:
    files, _ = two
    assert not files.exists(bad)
    assert files.record(bad) is None
    assert files.resolve(bad) is None
    assert not files.delete(bad)
    assert not files.unname(bad)
    with pytest.raises(ValueError, match="not a valid name"):
        files.name(bad, identity(1))


def test_a_name_means_one_adapter_for_all(two: Two) -> None:
    one, other = two
    for number in (1, 2):
        one.write(WEIGHTS, record(WEIGHTS, number))
    one.name("french", identity(1))
    one.name("french", identity(1))
    other.name("fr", identity(1))
    assert other.resolve("french") == identity(1)
    assert one.names() == other.names() == {identity(1): ["fr", "french"]}
    with pytest.raises(NameTakenError):
        other.name("french", identity(2))
    assert one.delete(identity(1))
    assert other.resolve("french") is None
    assert other.names() == {}
    other.name("french", identity(2))
    assert one.resolve("french") == identity(2)
    assert other.unname("french")
    assert not one.unname("french")


def test_a_deleted_adapter_is_gone_for_all(two: Two) -> None:
    one, other = two
    stored, _ = one.write(WEIGHTS, record(WEIGHTS))
    other.local(stored.id)
    assert other.record(stored.id) == stored
    assert one.delete(stored.id)
    assert not other.delete(stored.id)
    assert other.record(stored.id) is None
    assert one.records() == other.records() == []
    with pytest.raises(FileNotFoundError):
        other.read(stored.id)
