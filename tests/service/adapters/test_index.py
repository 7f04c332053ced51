"""The index matches the store after changes by any process, and no request reads the whole store."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from llgbm.config import lora_spec
from service.adapters.files import AdapterFiles
from service.adapters.index import AdapterIndex, index_path
from service.adapters.records import CONFIG_FILE, RECORD_FILE, AdapterRecord
from service.adapters.shared_files import SharedFiles
from tests.fixtures import random_lora
from tests.service.support.harness import wait_until
from tests.service.support.records import identity, record

WEIGHTS = random_lora(lora_spec("tiny"), 1)


def put_by_hand(files: AdapterFiles, number: int, *, created: float = 1.0) -> AdapterRecord:
    """A folder like a copied adapter, without tensors, because the index reads only the record."""
    made = record(WEIGHTS, number, created=created).model_copy(update={"norms": {"q_proj": (1.0, None)}})
    folder = files.path(made.id)
    folder.mkdir()
    (folder / CONFIG_FILE).write_text("{}")
    (folder / RECORD_FILE).write_bytes(made.content())
    return made


class Opened:
    def __init__(self, files: AdapterFiles, path: Path) -> None:
        self.files, self.path = files, path
        self.index = AdapterIndex(files, path)

    def listed(self, limit: int = 100, after: str | None = None) -> list[str]:
        self.index.catch_up(30.0)
        found = self.index.ids(limit, after)
        assert found is not None
        return [identity for identity, _ in found]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opened]:
    opened = Opened(AdapterFiles(tmp_path / "store"), tmp_path / "cache" / "index.sqlite")
    yield opened
    opened.index.close()


@pytest.fixture(autouse=True)
def no_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scan may start immediately after another."""
    monkeypatch.setattr("service.adapters.index._REST", 0)


def test_folders_and_links_that_were_put_there_by_hand_are_found(opened: Opened) -> None:
    put_by_hand(opened.files, 1)
    assert opened.listed() == [identity(1)]
    put_by_hand(opened.files, 2, created=2.0)
    (opened.files.folder / "french").symlink_to(identity(2))
    (opened.files.folder / "no-adapter").mkdir()
    (opened.files.folder / identity(3)).mkdir()  # without a record
    assert opened.listed() == [identity(2), identity(1)]
    assert opened.index.names_of([identity(1), identity(2)]) == {identity(2): ["french"]}
    (opened.files.folder / "french").unlink()
    (opened.files.folder / "french").symlink_to(identity(1))
    opened.files.delete(identity(2), [])
    assert opened.listed() == [identity(1)]
    assert opened.index.names_of([identity(1), identity(2)]) == {identity(1): ["french"]}


def test_pages_follow_each_other_also_where_many_are_of_one_moment(opened: Opened) -> None:
    for number in range(25):
        put_by_hand(opened.files, number, created=float(number // 7))
    whole = [each.id for each in opened.files.records()]
    pages, after = [], None
    while page := opened.listed(4, after):
        pages.append(page)
        after = page[-1]
    assert [each for page in pages for each in page] == whole
    assert [len(page) for page in pages] == [4] * 6 + [1]
    assert opened.index.page(4, identity(99)) is None


def test_a_page_has_the_records_but_not_their_norms(opened: Opened) -> None:
    made = put_by_hand(opened.files, 1)
    opened.index.catch_up(30.0)
    assert opened.index.page(5, None) == [made.model_copy(update={"norms": {}})]


def test_what_is_told_is_there_at_once_and_for_all_processes_of_the_machine(opened: Opened) -> None:
    other = Opened(opened.files, opened.path)
    opened.index.put(record(WEIGHTS, 1))
    opened.index.put_name("french", identity(1))
    assert other.index.ids(5, None) == [(identity(1), 1.0)]
    assert other.index.names_of([identity(1)]) == {identity(1): ["french"]}
    other.index.remove_name("french")
    assert opened.index.names_of([identity(1)]) == {}
    other.index.remove(identity(1))
    assert opened.index.ids(5, None) == []
    other.index.close()


def test_it_outlives_the_process_and_only_what_is_new_is_read(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        put_by_hand(opened.files, number)
    assert len(opened.listed()) == 5
    opened.index.close()
    put_by_hand(opened.files, 7)
    again = Opened(AdapterFiles(opened.files.folder), opened.path)
    read: list[str] = []
    inner = again.files._read_record

    def counted(identity: str) -> AdapterRecord | None:
        read.append(identity)
        return inner(identity)

    monkeypatch.setattr(again.files, "_read_record", counted)
    assert len(again.listed()) == 6
    assert read == [identity(7)]
    assert len(again.listed()) == 6
    assert len(read) == 1
    again.index.close()


def test_an_unchanged_store_is_not_looked_at_again(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    put_by_hand(opened.files, 1)
    opened.listed()
    monkeypatch.setattr(opened.files, "identities", lambda: pytest.fail("looked at"))
    assert opened.listed() == [identity(1)]


@pytest.mark.parametrize("content", [b"", b"no database", b"SQLite format 3\0" + bytes(4000)])
def test_a_torn_file_is_made_anew(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "index.sqlite"
    path.write_bytes(content)
    opened = Opened(AdapterFiles(tmp_path / "store"), path)
    put_by_hand(opened.files, 1)
    assert opened.listed() == [identity(1)]
    opened.index.close()


def test_a_file_that_is_torn_while_it_is_used_is_made_anew(opened: Opened) -> None:
    for number in range(200):
        put_by_hand(opened.files, number)
    assert len(opened.listed(1000)) == 200
    opened.index._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    size = opened.path.stat().st_size
    with opened.path.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(size - 4096))
    found = opened.index.ids(1000, None)
    assert found is not None
    assert len(found) == 200


def test_an_index_of_another_version_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "index.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    opened = Opened(AdapterFiles(tmp_path / "store"), path)
    assert opened.listed() == []
    opened.index.close()


def test_without_a_place_for_it_a_temporary_one_is_taken(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    opened = Opened(AdapterFiles(tmp_path / "store"), tmp_path / "file" / "index.sqlite")
    put_by_hand(opened.files, 1)
    assert opened.listed() == [identity(1)]
    folder = opened.index._path.parent
    assert folder.is_dir()
    opened.index.close()
    assert not folder.exists()


def test_what_is_stored_while_a_scan_is_on_its_way_stays(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = opened.files.identities

    def while_listing() -> Iterator[str]:
        yield from inner()
        opened.index.put(put_by_hand(opened.files, 2))  # after the folder was read

    monkeypatch.setattr(opened.files, "identities", while_listing)
    put_by_hand(opened.files, 1)
    assert opened.listed() == [identity(1), identity(2)]


def test_the_name_of_another_store_is_another_file(tmp_path: Path) -> None:
    assert index_path(tmp_path, "s3://a") != index_path(tmp_path, "s3://b")


def test_a_store_elsewhere_is_listed_and_its_new_names_are_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = (SharedFiles(tmp_path / name, f"file://{tmp_path}/shared") for name in ("one", "two"))
    opened = Opened(two, tmp_path / "index.sqlite")
    for number in (1, 2):
        one.write(WEIGHTS, record(WEIGHTS, number, created=float(number)))
    one.name("french", identity(1))
    assert opened.listed() == [identity(2), identity(1)]
    assert opened.index.names_of([identity(1)]) == {identity(1): ["french"]}
    with monkeypatch.context() as patched:
        patched.setattr(two, "meaning", lambda name: pytest.fail("read again"))
        assert opened.listed() == [identity(2), identity(1)]
    one.unname("french")
    one.name("french", identity(2))
    one.delete(identity(1))
    assert opened.listed() == [identity(2)]
    assert opened.index.names_of([identity(1), identity(2)]) == {identity(2): ["french"]}
    opened.index.close()


def test_a_list_does_not_wait_for_a_long_scan(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    put_by_hand(opened.files, 1)
    opened.listed()
    inner = opened.files.identities
    finish: list[bool] = []

    def slowly() -> Iterator[str]:
        yield from inner()
        wait_until(lambda: bool(finish))

    monkeypatch.setattr(opened.files, "identities", slowly)
    put_by_hand(opened.files, 2)
    opened.index.catch_up(0.01)
    assert opened.index.ids(5, None) == [(identity(1), 1.0)]
    finish.append(True)
    wait_until(lambda: len(opened.index.ids(5, None) or ()) == 2)


def test_a_list_does_not_wait_where_the_last_scan_was_long(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = opened.files.identities

    def slowly() -> Iterator[str]:
        yield from inner()
        time.sleep(0.6)

    monkeypatch.setattr(opened.files, "identities", slowly)
    put_by_hand(opened.files, 1)
    assert opened.listed() == [identity(1)]
    put_by_hand(opened.files, 2)
    start = time.monotonic()
    opened.index.catch_up(0.5)
    assert time.monotonic() - start < 0.4
    wait_until(lambda: len(opened.index.ids(5, None) or ()) == 2)


def test_records_in_memory_are_the_last_thousand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.adapters.files._KEPT_RECORDS", 3)
    files = AdapterFiles(tmp_path)
    for number in range(5):
        put_by_hand(files, number)
        assert files.record(identity(number)) is not None
    assert len(files._records) == 3
