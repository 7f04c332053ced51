"""The index of a store: its adapters by time of creation, and their names, in a local SQLite file.

A request for one adapter reads the store itself. Requests for a list, or for all names of an adapter, use the index, so
that no request reads the whole store and no process keeps it in memory. All processes of a machine share the file. It
holds only data that the store has too, may be deleted at any time, and is rebuilt if it is damaged.

Changes by this service are written to the index at once. Changes by others, by hand or from another machine, are found
by a scan of the store. It runs in the background when a list is requested and the store has changed, for at most about
5 % of the time. A list waits for the scan if that is short, so that lists of small stores are up to date.
"""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as StillRunning
from pathlib import Path
from typing import Any, TypeVar

import structlog

from llgbm.files.sqlite import open_sqlite, transaction, write_ahead
from service.adapters.files import AdapterFiles
from service.adapters.records import AdapterRecord, parse_record

PATIENCE = 0.25
"""Maximum seconds that a list waits for a scan."""
_REST = 20
"""Pause between two scans, as a multiple of the duration of the last one."""
_BATCH = 200
_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS adapter (
    id TEXT PRIMARY KEY, created REAL NOT NULL, record BLOB NOT NULL, indexed REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS newest ON adapter (created DESC, id);
CREATE TABLE IF NOT EXISTS name (
    name TEXT PRIMARY KEY, id TEXT NOT NULL, mark TEXT NOT NULL, indexed REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS names_of ON name (id, name);
"""
_NEW = "SELECT id FROM here WHERE id NOT IN (SELECT id FROM adapter)"
_RENAMED = "SELECT named.name, named.mark FROM named LEFT JOIN name USING (name) WHERE name.mark IS NOT named.mark"
_log = structlog.get_logger("service.adapter_index")
_T = TypeVar("_T")


def index_path(cache_folder: Path, store: str) -> Path:
    """The index file of a store, from its folder's path or its address."""
    return cache_folder / f"adapters-{hashlib.sha256(store.encode()).hexdigest()[:12]}.sqlite"


class AdapterIndex:
    """The index of `files` in the file `path`. Blocks; thread-safe.

    If its folder is not writable, a temporary one is used, with a warning in the log.
    """

    def __init__(self, files: AdapterFiles, path: Path) -> None:
        self._files = files
        self._lock = threading.Lock()
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        try:
            self._path, self._connection = path, _opened(path)
        except (sqlite3.OperationalError, OSError) as error:
            _log.warning("adapter_index_is_temporary", path=str(path), error=str(error))
            self._temporary = tempfile.TemporaryDirectory(prefix="llgbm-index-")
            self._path = Path(self._temporary.name) / path.name
            self._connection = _opened(self._path)
        self._scan_lock = threading.Lock()
        self._scanning: Future[None] | None = None
        self._scanned: object = None
        self._rests_until = 0.0
        self._took = 0.0
        self._closed = False

    def close(self) -> None:
        """Close the file, after a running scan."""
        self._closed = True
        scanning = self._scanning
        if scanning is not None:
            with contextlib.suppress(Exception):
                scanning.result()
        with self._lock:
            self._connection.close()
        if self._temporary is not None:
            self._temporary.cleanup()

    # queries

    def page(self, limit: int, after: str | None) -> list[AdapterRecord] | None:
        """Up to `limit` records without norms, newest first, after the adapter with id `after`.

        None if the adapter `after` does not exist.
        """
        rows = self._rows_after("id, record", limit, after)
        if rows is None:
            return None
        return [record for identity, content in rows if (record := parse_record(content, identity)) is not None]

    def ids(self, limit: int, after: str | None) -> list[tuple[str, float]] | None:
        """As `page`, but only the id and the time of creation of each, in seconds since 1970."""
        return self._rows_after("id, created", limit, after)

    def _rows_after(self, columns: str, limit: int, after: str | None) -> list[Any] | None:
        def read() -> list[Any] | None:
            order = f"ORDER BY created DESC, id LIMIT {int(limit)}"
            if after is None:
                return self._connection.execute(f"SELECT {columns} FROM adapter {order}").fetchall()
            found = self._connection.execute("SELECT created FROM adapter WHERE id = ?", (after,)).fetchone()
            if found is None:
                return None
            # two ranges of the index: adapters created at the same time, and older ones
            older = f"SELECT {columns} FROM adapter WHERE created < ? {order}"
            equal = f"SELECT {columns} FROM adapter WHERE created = ? AND id > ? {order}"
            rows = self._connection.execute(equal, (*found, after)).fetchall()
            return (rows + self._connection.execute(older, found).fetchall())[:limit]

        return self._asked(read)

    def names_of(self, identities: Sequence[str]) -> dict[str, list[str]]:
        """Id -> its sorted names, for those of `identities` that have names."""

        def read() -> dict[str, list[str]]:
            found: dict[str, list[str]] = {}
            for start in range(0, len(identities), _BATCH):
                part = identities[start : start + _BATCH]
                marks = ",".join("?" * len(part))
                rows = self._connection.execute(f"SELECT id, name FROM name WHERE id IN ({marks}) ORDER BY name", part)
                for identity, name in rows:
                    found.setdefault(identity, []).append(name)
            return found

        return self._asked(read)

    def _asked(self, read: Callable[[], _T]) -> _T:
        try:
            with self._lock:
                return read()
        except sqlite3.OperationalError:  # such as an I/O error: the file itself may be intact
            raise
        except sqlite3.DatabaseError as error:
            _log.error("adapter_index_built_anew", path=str(self._path), error=str(error))
            with self._lock:
                self._connection.close()
                _remove(self._path)
                self._connection = _opened(self._path)
            self._scan()
            with self._lock:
                return read()

    # changes by this service

    def put(self, record: AdapterRecord) -> None:
        """Add a newly stored adapter."""
        self._told(lambda connection: _put(connection, [record]))

    def remove(self, identity: str) -> None:
        """Remove a deleted adapter and its names."""

        def write(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM adapter WHERE id = ?", (identity,))
            connection.execute("DELETE FROM name WHERE id = ?", (identity,))

        self._told(write)

    def put_name(self, name: str, identity: str) -> None:
        """Add a new name."""
        self._told(lambda connection: _put_name(connection, name, identity, ""))

    def remove_name(self, name: str) -> None:
        """Remove a name."""
        self._told(lambda connection: connection.execute("DELETE FROM name WHERE name = ?", (name,)))

    def _told(self, write: Callable[[sqlite3.Connection], object]) -> None:
        try:
            with self._lock, transaction(self._connection):
                write(self._connection)
        except sqlite3.Error as error:  # such as a full disk; the next scan finds the change in the store
            _log.warning("adapter_index_not_written", error=str(error))

    # changes by others

    def catch_up(self, patience: float = PATIENCE) -> None:
        """Start a background scan if the store has changed, and wait up to `patience` seconds for it.

        It does not wait if the last scan took longer than that, so that requests to a large store do not wait in vain.

        Raises:
            StoreUnavailableError: the scan failed within that time because the store did not answer.
        """
        scanning = self._start_scan()
        if scanning is not None and self._took <= patience:
            with contextlib.suppress(StillRunning):
                scanning.result(patience)

    def _start_scan(self) -> Future[None] | None:
        with self._scan_lock:
            if self._scanning is not None and not self._scanning.done():
                return self._scanning
            state = self._files.state()
            unchanged = state is not None and state == self._scanned
            if self._closed or unchanged or time.monotonic() < self._rests_until:
                return None
            self._scanning = future = Future[None]()
            threading.Thread(target=self._run_scan, args=(future, state), name="llgbm-index", daemon=True).start()
            return future

    def _run_scan(self, future: Future[None], state: object) -> None:
        start = time.monotonic()
        try:
            self._scan()
            self._scanned = state  # the state before the scan, so that later changes cause another scan
            outcome: Exception | None = None
        except sqlite3.Error as error:  # such as a full disk: lists show the index as it is, and deletes must work
            _log.warning("adapter_index_not_written", error=str(error))
            outcome = None
        except Exception as error:  # passed to waiting callers; later requests scan again
            _log.warning("adapter_index_scan_failed", error=f"{type(error).__name__}: {error}")
            outcome = error
        self._took = time.monotonic() - start
        self._rests_until = time.monotonic() + _REST * self._took
        if outcome is None:
            future.set_result(None)
        else:
            future.set_exception(outcome)

    def _scan(self) -> None:
        """Update the index from the store. Memory does not grow with the store."""
        start = time.time()
        connection = _opened(self._path)  # a second connection, so that queries need not wait
        try:
            connection.execute("CREATE TEMP TABLE here (id TEXT PRIMARY KEY) WITHOUT ROWID")
            connection.execute("CREATE TEMP TABLE named (name TEXT PRIMARY KEY, mark TEXT NOT NULL) WITHOUT ROWID")
            with transaction(connection, "BEGIN"):
                rows = ((identity,) for identity in self._files.identities())
                connection.executemany("INSERT OR IGNORE INTO here VALUES (?)", rows)
                connection.executemany("INSERT OR REPLACE INTO named VALUES (?, ?)", self._files.name_marks())
            for identities in _batches(connection, _NEW, "id"):
                records = self._files.read_records([identity for (identity,) in identities])
                with transaction(connection):
                    _put(connection, records)
                if self._closed:
                    return
            for names in _batches(connection, _RENAMED, "named.name"):
                meanings = [(name, self._files.meaning(name), mark) for name, mark in names]
                with transaction(connection):
                    for name, identity, mark in meanings:
                        if identity is not None:
                            _put_name(connection, name, identity, mark)
            with transaction(connection):
                # but keep entries added during this scan
                gone = "indexed < ? AND {0} NOT IN (SELECT {0} FROM {1})"
                connection.execute(f"DELETE FROM adapter WHERE {gone.format('id', 'here')}", (start,))
                connection.execute(f"DELETE FROM name WHERE {gone.format('name', 'named')}", (start,))
        finally:
            connection.close()


def _opened(path: Path) -> sqlite3.Connection:
    """Open the file; it is made again if it is not an index of this version."""
    try:
        return open_sqlite(path, _prepare)
    except sqlite3.OperationalError:
        raise
    except sqlite3.DatabaseError as error:
        _log.warning("adapter_index_built_anew", path=str(path), error=str(error))
        _remove(path)
        return open_sqlite(path, _prepare)


def _prepare(connection: sqlite3.Connection) -> None:
    write_ahead(connection)
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version not in (0, _VERSION):
        raise sqlite3.DatabaseError(f"version {version}")
    if version == 0:
        connection.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {_VERSION}; COMMIT;")


def _remove(path: Path) -> None:
    for ending in ("", "-wal", "-shm"):
        path.with_name(path.name + ending).unlink(missing_ok=True)


def _batches(connection: sqlite3.Connection, query: str, key: str) -> Iterator[list[tuple[str, ...]]]:
    """The rows of a query in batches, each with its own query, so that the tables may change in between."""
    joined = "AND" if "WHERE" in query else "WHERE"
    last = ""
    while rows := connection.execute(f"{query} {joined} {key} > ? ORDER BY {key} LIMIT {_BATCH}", (last,)).fetchall():
        last = rows[-1][0]
        yield rows


def _put(connection: sqlite3.Connection, records: Iterable[AdapterRecord]) -> None:
    now = time.time()
    rows = ((r.id, r.created, r.model_copy(update={"norms": {}}).model_dump_json(), now) for r in records)
    connection.executemany("INSERT OR REPLACE INTO adapter VALUES (?, ?, ?, ?)", rows)


def _put_name(connection: sqlite3.Connection, name: str, identity: str, mark: str) -> None:
    connection.execute("INSERT OR REPLACE INTO name VALUES (?, ?, ?, ?)", (name, identity, mark, time.time()))
