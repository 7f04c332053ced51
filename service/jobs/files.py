"""Files of examples: upload, list, read, delete. All methods block and are thread-safe."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass

from service.jobs.database import Database
from service.jobs.errors import InvalidFileError, UnknownFileError
from service.jobs.examples import read_examples

FINE_TUNE, RESULTS = "fine-tune", "fine-tune-results"
_COLUMNS = "id, created, filename, purpose, bytes"


@dataclass(frozen=True)
class FileRecord:
    """The facts about a file, without its content.

    Attributes:
        created: seconds since 1970.
        purpose: `fine-tune` for examples, `fine-tune-results` for the losses of a job.
    """

    id: str
    created: float
    filename: str
    purpose: str
    bytes: int


class Files:
    """The files in the store's database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, filename: str, content: bytes, *, purpose: str = FINE_TUNE, param: str = "file") -> FileRecord:
        """Store a file. The content of a file of examples is checked first.

        Raises:
            InvalidFileError: the content is not valid examples.
            StoreFullError: the disk is full.
        """
        if purpose == FINE_TUNE:
            read_examples(content, param=param)
        record = FileRecord(f"file-{uuid.uuid4().hex}", time.time(), filename, purpose, len(content))
        with self._database.writing() as connection:
            connection.execute(
                f"INSERT INTO file ({_COLUMNS}, content) VALUES (?, ?, ?, ?, ?, ?)",
                (record.id, record.created, record.filename, record.purpose, record.bytes, content),
            )
        return record

    def record(self, identity: str, *, param: str | None = None) -> FileRecord:
        """The facts about a file.

        Raises:
            UnknownFileError: there is no such file: 400 that names the field `param`, or 404 without `param`.
        """
        rows = self._database.rows(f"SELECT {_COLUMNS} FROM file WHERE id = ?", (identity,))
        if not rows:
            raise UnknownFileError(identity, param=param)
        return FileRecord(*rows[0])

    def content(self, identity: str) -> bytes:
        """The content of a file. Raises UnknownFileError."""
        rows = self._database.rows("SELECT content FROM file WHERE id = ?", (identity,))
        if not rows:
            raise UnknownFileError(identity)
        return bytes(rows[0]["content"])

    def examples(self, identity: str, param: str) -> bytes:
        """The content of a file of examples.

        Raises:
            ApiError: 400 that names the field `param`: there is no such file, or it has another purpose.
        """
        record = self.record(identity, param=param)
        if record.purpose != FINE_TUNE:
            raise InvalidFileError(
                f"the purpose of {identity} is {record.purpose}; a job needs a file for {FINE_TUNE}",
                param=param,
            )
        return self.content(identity)

    def page(
        self, limit: int, after: str | None, *, purpose: str | None = None, ascending: bool = False
    ) -> tuple[list[FileRecord], bool]:
        """Up to `limit` files, the newest first unless `ascending`; and whether there are more.

        Raises:
            UnknownFileError: there is no file `after`.
        """
        if after is not None:
            self.record(after, param="after")
        compare, direction = (">", "ASC") if ascending else ("<", "DESC")
        rows = self._database.rows(
            f"SELECT {_COLUMNS} FROM file WHERE (?1 IS NULL OR purpose = ?1)"
            f" AND (?2 IS NULL OR seq {compare} (SELECT seq FROM file WHERE id = ?2))"
            f" ORDER BY seq {direction} LIMIT ?3",
            (purpose, after, limit + 1),
        )
        return [FileRecord(*row) for row in rows[:limit]], len(rows) > limit

    def delete(self, identity: str) -> None:
        """Remove a file with its content. Raises UnknownFileError."""
        self.record(identity)
        with self._database.writing() as connection:
            deleted = connection.execute("DELETE FROM file WHERE id = ?", (identity,)).rowcount
        if not deleted:
            raise UnknownFileError(identity)
