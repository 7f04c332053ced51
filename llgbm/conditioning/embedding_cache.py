"""Caches of text embeddings: the protocol, a cache in memory and one in sqlite.

A cache maps string keys to bytes and may forget any of them at any time. Both caches are bounded and thread-safe;
several processes may share the sqlite one.
"""

from __future__ import annotations

import hashlib
import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from torch import Tensor

from llgbm.errors import EmbeddingCacheError
from llgbm.files.sqlite import open_sqlite, transaction, write_ahead

_KEYS_PER_QUERY = 500  # sqlite limits the parameters of a query, to 999 in old versions


class EmbeddingCache(Protocol):
    """Interface of a cache for `PretrainedTextEncoder`."""

    def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        """The value of each key, None where it is missing."""
        ...

    def set_many(self, items: Mapping[str, bytes]) -> None:
        """Store these values, and replace those of the same keys."""
        ...


def text_key(prefix: str, text: str) -> str:
    """The key of a text in a cache, under the prefix of its reader."""
    return prefix + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def rows_through_cache(
    texts: Sequence[str],
    cache: EmbeddingCache | None,
    *,
    key: Callable[[str], str],
    read: Callable[[bytes], Tensor | None],
    compute: Callable[[list[str]], Tensor],
    stored_as: str,
) -> list[Tensor]:
    """One row for each text, in order: kept in the cache, or computed and then kept there.

    Args:
        cache: None computes every text, and asks for no key.
        read: a row from its bytes; None for an invalid value, which is then computed and stored again.
        compute: rows (n, size) of n different texts.
        stored_as: numpy's name of the bytes' number format, such as `<f4`.

    Raises:
        EmbeddingCacheError: the cache failed.
    """
    unique = list(dict.fromkeys(texts))
    keys = {text: key(text) for text in unique} if cache is not None else {}
    known = cache.get_many(list(keys.values())) if cache is not None else []
    rows = {
        t: row for t, value in zip(keys, known, strict=True) if value is not None and (row := read(value)) is not None
    }
    if missing := [text for text in unique if text not in rows]:
        fresh = dict(zip(missing, compute(missing), strict=True))
        rows |= fresh
        if cache is not None:
            cache.set_many({keys[t]: row.numpy().astype(stored_as).tobytes() for t, row in fresh.items()})
    return [rows[text] for text in texts]


class MemoryEmbeddingCache:
    """Keeps the `max_items` most recently used values, in this process."""

    def __init__(self, max_items: int = 4096) -> None:
        self._max_items = max_items
        self._items: OrderedDict[str, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._items)

    def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        """The value of each key, None where it is missing."""
        with self._lock:
            for key in keys:
                if key in self._items:
                    self._items.move_to_end(key)
            return [self._items.get(key) for key in keys]

    def set_many(self, items: Mapping[str, bytes]) -> None:
        """Store these values, and drop the least recently used ones."""
        with self._lock:
            for key, value in items.items():
                self._items[key] = value
                self._items.move_to_end(key)
            while len(self._items) > self._max_items:
                self._items.popitem(last=False)


class SqliteEmbeddingCache:
    """Keeps the `max_items` most recently written values, in a sqlite file that processes may share.

    Raises:
        EmbeddingCacheError: the file cannot be opened, or is not a sqlite database of this form.
    """

    def __init__(self, path: Path, max_items: int = 200_000) -> None:
        self._path, self._max_items = path, max_items
        self._lock = threading.Lock()
        with self._named_errors():
            self._connection = open_sqlite(path, _prepare)

    def __len__(self) -> int:
        with self._lock, self._named_errors():
            count: int = self._connection.execute("SELECT count(*) FROM embedding").fetchone()[0]
            return count

    def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        """The value of each key, None where it is missing."""
        found: dict[str, bytes] = {}
        with self._lock, self._named_errors():
            for start in range(0, len(keys), _KEYS_PER_QUERY):
                part = keys[start : start + _KEYS_PER_QUERY]
                marks = ",".join("?" * len(part))
                found.update(self._connection.execute(f"SELECT key, value FROM embedding WHERE key IN ({marks})", part))
        return [found.get(key) for key in keys]

    def set_many(self, items: Mapping[str, bytes]) -> None:
        """Store these values, and drop the oldest ones."""
        with self._lock, self._named_errors(), transaction(self._connection):
            self._connection.executemany("INSERT OR REPLACE INTO embedding (key, value) VALUES (?, ?)", items.items())
            self._connection.execute(
                # numbers only grow, so this leaves at most max_items rows without counting them
                "DELETE FROM embedding WHERE number <= (SELECT max(number) FROM embedding) - ?",
                (self._max_items,),
            )

    def close(self) -> None:
        """Close the file; all stored values are on disk."""
        with self._lock:
            self._connection.close()

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise EmbeddingCacheError(
                f"the embedding cache {self._path} failed: {error}; if this persists, delete that file: "
                "all its content can be computed again"
            ) from error


def _prepare(connection: sqlite3.Connection) -> None:
    write_ahead(connection)
    connection.execute(
        "CREATE TABLE IF NOT EXISTS embedding (number INTEGER PRIMARY KEY AUTOINCREMENT, "
        "key TEXT NOT NULL UNIQUE, value BLOB NOT NULL)"
    )
