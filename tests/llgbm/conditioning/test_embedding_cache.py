import multiprocessing
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llgbm.conditioning.embedding_cache import EmbeddingCache, MemoryEmbeddingCache, SqliteEmbeddingCache
from llgbm.errors import EmbeddingCacheError
from tests.fixtures import in_threads

items = st.dictionaries(st.text(max_size=5), st.binary(max_size=20), max_size=6)
Maker = Callable[[], EmbeddingCache]


@pytest.fixture(params=["memory", "sqlite"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Maker]:
    opened: list[SqliteEmbeddingCache] = []

    def new() -> EmbeddingCache:
        if request.param == "memory":
            return MemoryEmbeddingCache()
        opened.append(SqliteEmbeddingCache(tmp_path / f"{len(opened)}.sqlite"))
        return opened[-1]

    yield new
    for cache in opened:
        cache.close()


def test_what_is_set_is_what_is_got(make: Maker) -> None:
    @settings(max_examples=25)
    @given(st.lists(items, max_size=4), st.lists(st.text(max_size=5), max_size=8))
    def law(batches: list[dict[str, bytes]], others: list[str]) -> None:
        cache, expected = make(), dict[str, bytes]()
        for batch in batches:
            cache.set_many(batch)
            expected |= batch
            asked = [*others, *expected]
            assert cache.get_many(asked) == [expected.get(key) for key in asked]

    law()


def test_many_keys_at_once(make: Maker) -> None:
    cache = make()
    many = {str(i): bytes([i % 256]) for i in range(1500)}
    cache.set_many(many)
    assert cache.get_many([*many, "none"]) == [*many.values(), None]


def test_threads_may_share_one(make: Maker) -> None:
    cache = make()

    def work(number: int) -> None:
        for i in range(50):
            key = f"{number}-{i}"
            cache.set_many({key: key.encode(), "shared": str(i).encode()})
            assert cache.get_many([key]) == [key.encode()] or isinstance(cache, MemoryEmbeddingCache)

    in_threads(work, range(4))
    assert cache.get_many(["shared"]) == [b"49"]


def test_memory_forgets_what_was_not_used_for_longest() -> None:
    cache = MemoryEmbeddingCache(3)
    cache.set_many({"a": b"1", "b": b"2", "c": b"3"})
    cache.get_many(["a"])
    cache.set_many({"d": b"4"})
    assert cache.get_many(["a", "b", "c", "d"]) == [b"1", None, b"3", b"4"]
    assert len(cache) == 3


def test_sqlite_lasts_and_stays_bounded(tmp_path: Path) -> None:
    first = SqliteEmbeddingCache(tmp_path / "deep" / "cache.sqlite", max_items=10)
    for i in range(25):
        first.set_many({str(i): bytes([i]), "always": b"new"})
        assert len(first) <= 10
    first.close()
    second = SqliteEmbeddingCache(tmp_path / "deep" / "cache.sqlite", max_items=10)
    assert second.get_many(["24", "always", "0"]) == [bytes([24]), b"new", None]
    second.close()


def write_some(path: Path, start: int) -> None:
    cache = SqliteEmbeddingCache(path)
    for i in range(start, start + 40):
        cache.set_many({f"key-{i}": f"value-{i}".encode()})
    cache.close()


def test_processes_may_share_one_file(tmp_path: Path) -> None:
    path = tmp_path / "cache.sqlite"
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=write_some, args=(path, start)) for start in (0, 40)]
    for process in processes:
        process.start()
    here = SqliteEmbeddingCache(path)
    for i in range(80, 120):
        here.set_many({f"key-{i}": f"value-{i}".encode()})
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert here.get_many([f"key-{i}" for i in range(120)]) == [f"value-{i}".encode() for i in range(120)]
    here.close()


def test_a_file_that_is_no_cache_is_named(tmp_path: Path) -> None:
    path = tmp_path / "cache.sqlite"
    path.write_bytes(b"something else" * 100)
    with pytest.raises(EmbeddingCacheError, match=str(path)):
        SqliteEmbeddingCache(path)
    assert path.read_bytes() == b"something else" * 100
    with pytest.raises(EmbeddingCacheError, match="File exists"):
        SqliteEmbeddingCache(path / "below")


def test_a_failing_write_changes_nothing_and_is_told(tmp_path: Path) -> None:
    path = tmp_path / "cache.sqlite"
    cache = SqliteEmbeddingCache(path)
    cache.set_many({"a": b"1"})
    with pytest.raises(EmbeddingCacheError):
        cache.set_many({"b": b"2", "c": None})  # type: ignore[dict-item]
    cache.set_many({"d": b"4"})
    assert cache.get_many(["a", "b", "c", "d"]) == [b"1", None, None, b"4"]
    other = sqlite3.connect(path)
    other.execute("DROP TABLE embedding")
    other.close()
    with pytest.raises(EmbeddingCacheError, match="delete that file"):
        cache.get_many(["a"])
    cache.close()


def test_a_full_disk_is_named_when_sqlite_has_rolled_back_by_itself(tmp_path: Path) -> None:
    cache = SqliteEmbeddingCache(tmp_path / "cache.sqlite")
    cache.set_many({"a": b"1"})
    cache._connection.execute("PRAGMA max_page_count = 8")
    with pytest.raises(EmbeddingCacheError, match="database or disk is full"):
        cache.set_many({str(i): bytes(4096) for i in range(50)})
    cache._connection.execute("PRAGMA max_page_count = 1000")
    cache.set_many({"b": b"2"})
    assert cache.get_many(["a", "0", "b"]) == [b"1", None, b"2"]
    cache.close()
