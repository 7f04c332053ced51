"""The SQLite file of jobs and of the files that they learn from, in the folder of the store.

All processes of a store share it, also on several machines if the file system has locks. So it uses SQLite's rollback
journal, because the write-ahead log works on one machine only. The content of files is in the database too: a file and
its content are added and deleted in one transaction, and deleted bytes are overwritten. All functions block and are
thread-safe.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from llgbm.files.sqlite import open_sqlite, transaction
from service.adapters.errors import StoreFullError

FOLDER = ".fine-tuning"
"""A folder in the store; no adapter can have its name."""
_FILE = "jobs.sqlite"
_VERSION = 1
_SCHEMA = """
CREATE TABLE file (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, created REAL NOT NULL, filename TEXT NOT NULL,
    purpose TEXT NOT NULL, bytes INTEGER NOT NULL, content BLOB NOT NULL
);
CREATE TABLE job (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, created REAL NOT NULL, status TEXT NOT NULL,
    order_json TEXT NOT NULL, attempts INTEGER NOT NULL DEFAULT 0, started REAL, finished REAL,
    step INTEGER NOT NULL DEFAULT 0, total INTEGER NOT NULL DEFAULT 0, loss REAL,
    adapter TEXT, result_json TEXT, error_code TEXT, error TEXT
);
CREATE INDEX unfinished ON job (status, seq);
CREATE TABLE event (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, job TEXT NOT NULL, created REAL NOT NULL, level TEXT NOT NULL,
    message TEXT NOT NULL, data_json TEXT
);
CREATE INDEX events_of ON event (job, seq);
"""


class Database:
    """The file in the store's folder. The first write creates it, so a store without jobs has no file."""

    def __init__(self, store_folder: Path) -> None:
        self.folder = store_folder / FOLDER
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None

    def rows(self, query: str, values: Sequence[object] = ()) -> list[sqlite3.Row]:
        """The rows of a query; none if there is no file yet."""
        with self._lock:
            if self._connection is None and not (self.folder / _FILE).exists():
                return []
            return self._opened().execute(query, values).fetchall()

    @contextlib.contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """The connection in a transaction, which is rolled back if the block raises.

        Raises:
            StoreFullError: the disk is full; nothing was written.
        """
        with self._lock:
            try:
                connection = self._opened()
                with transaction(connection):
                    yield connection
            except sqlite3.OperationalError as error:
                if getattr(error, "sqlite_errorcode", None) in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE):
                    raise StoreFullError(
                        "the disk of the store is full; delete files or adapters, and try again"
                    ) from error
                raise

    def _opened(self) -> sqlite3.Connection:
        if self._connection is None:
            self._connection = open_sqlite(self.folder / _FILE, _prepare)
        return self._connection

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None


def _prepare(connection: sqlite3.Connection) -> None:
    connection.row_factory = sqlite3.Row
    connection.execute("PRAGMA secure_delete=ON")
    with transaction(connection):
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version not in (0, _VERSION):
            raise sqlite3.DatabaseError(f"the store's database of jobs has version {version}, not {_VERSION}")
        if version == 0:
            for statement in _SCHEMA.split(";"):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {_VERSION}")
