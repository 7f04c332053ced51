"""A store at an fsspec address (S3, GCS, ...), for replicas on several machines, with a folder of local copies.

    {url}/{id}/adapter_config.json, adapter_model.safetensors    as in a folder, so that the prefix can be copied to one
    {url}/{id}/llgbm.json                                        the record: written last and removed first
    {url}/.names/{name}                                          its content is the id that the name points to

Object stores have no rename and no links. So an adapter exists if its record exists, and a name is an object, made with
the store's exclusive creation (S3 and GCS have it; for a plain folder, use LLGBM_STORE_DIR alone). Local copies are
checked against the hashes of the record. A deletion by another machine is noticed within `FRESH_SECONDS`.
"""

from __future__ import annotations

import contextlib
import errno
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from fsspec.core import url_to_fs

from llgbm.errors import ConfigError
from service.adapter_id import ADAPTER_ID
from service.adapters.copies import Copies
from service.adapters.errors import AdapterDamagedError, StoreUnavailableError
from service.adapters.files import AdapterFiles, is_full, room_for
from service.adapters.recent import Recent
from service.adapters.records import (
    ADAPTER_NAME,
    CONFIG_FILE,
    RECORD_FILE,
    WEIGHTS_FILE,
    AdapterRecord,
    file_info,
    parse_record,
)
from service.adapters.work_folder import work_folder
from service.setting_values import without_password

FRESH_SECONDS = 2.0
_NAMES = ".names"
_KEPT_RECORDS = 1000
_MARKS = ("ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified", "created", "size")
"""Keys under which backends list facts that change with an object's content."""


class _CheckedFilesystem:
    """An fsspec filesystem: failures are `StoreUnavailableError`, but not missing or existing files and full disks.

    Backends have their own exceptions for outages, expired credentials and similar failures.
    """

    def __init__(self, fs: Any) -> None:
        self._fs = fs

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return partial(_called, getattr(self._fs, name))


def _called(method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    try:
        return method(*args, **kwargs)
    except (FileNotFoundError, FileExistsError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and is_full(error):
            raise
        raise StoreUnavailableError(f"the store of adapters does not answer: {type(error).__name__}") from error


class SharedFiles(AdapterFiles):
    """`AdapterFiles` with the store at `url`; `folder` holds copies and may be emptied at any time.

    Raises:
        ConfigError: fsspec does not know the address, or its package is not installed.
    """

    def __init__(self, folder: Path, url: str, max_copy_bytes: int = 2**62) -> None:
        super().__init__(folder)
        try:
            fs, root = url_to_fs(url, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise ConfigError(f"LLGBM_STORE_URL {without_password(url)!r} cannot be opened: {error}") from error
        self._fs: Any = _CheckedFilesystem(fs)
        self._root = str(root).rstrip("/")
        self._seen = Recent[float](_KEPT_RECORDS)
        self._copies = Copies(folder, max_copy_bytes, self._remove_folder)

    def _at(self, *parts: str) -> str:
        return "/".join((self._root, *parts))

    # adapters

    def exists(self, identity: str) -> bool:
        """Whether the store has the adapter; the result may be `FRESH_SECONDS` old."""
        if ADAPTER_ID.fullmatch(identity) is None:
            return False
        if time.monotonic() - (self._seen.get(identity) or -math.inf) < FRESH_SECONDS:
            return True
        try:
            self._fs.info(self._at(identity, RECORD_FILE))  # not `exists`, which returns False in an outage
        except FileNotFoundError:
            self._forget(identity)
            return False
        self._seen[identity] = time.monotonic()
        return True

    def _forget(self, identity: str) -> None:
        self._seen.pop(identity)
        self._records.pop(identity)
        self._remove_folder(self.folder / identity)

    def _read_record(self, identity: str) -> AdapterRecord | None:
        try:
            data = self._fs.cat_file(self._at(identity, RECORD_FILE))
        except FileNotFoundError:
            return None
        return parse_record(data, identity)

    def read_records(self, identities: Iterable[str]) -> list[AdapterRecord]:
        """The records of existing adapters, read again in one parallel request."""
        paths = {self._at(identity, RECORD_FILE): identity for identity in identities}
        found = self._fs.cat(list(paths), on_error="return") if paths else {}
        records = []
        for path, content in found.items():
            if isinstance(content, bytes):
                records.append(parse_record(content, _last_part(path, 2)))
            elif not isinstance(content, FileNotFoundError):
                raise StoreUnavailableError(f"the store of adapters does not answer: {type(content).__name__}")
        return [record for record in records if record is not None]

    # everything

    def state(self) -> object:
        """None: only a listing shows changes."""
        return None

    def identities(self) -> Iterator[str]:
        """Ids that may be adapters."""
        names = (_last_part(entry["name"]) for entry in self._listed(self._root))
        yield from (name for name in names if ADAPTER_ID.fullmatch(name))

    def name_marks(self) -> Iterator[tuple[str, str]]:
        """Each name, and the facts of its object in the listing."""
        for entry in self._listed(self._at(_NAMES)):
            name = _last_part(entry["name"])
            if ADAPTER_NAME.fullmatch(name):
                yield name, str([entry.get(key) for key in _MARKS])

    def _listed(self, folder: str) -> list[Mapping[str, Any]]:
        try:
            return list(self._fs.ls(folder, detail=True))
        except FileNotFoundError:
            return []

    def local(self, identity: str) -> Path:
        """The adapter's local folder, fetched if it is missing or out of date.

        Raises:
            FileNotFoundError: the adapter is not in the store.
            AdapterDamagedError: its files differ from the record's hashes.
            StoreFullError: the disk has no room for the copy.
        """
        record, final = self.record(identity), self.folder / identity
        if record is not None and self._record_here(identity) == record:
            self._copies.used(identity)
            return final
        record = self._read_record(identity)  # it may have been replaced since that record was read
        if record is None:
            raise FileNotFoundError(errno.ENOENT, "no such adapter", self._at(identity))
        self._records[identity] = record
        if self._record_here(identity) == record:
            return final
        with room_for(f"a copy of {identity}"):
            self._fetch(identity, record)
        self._copies.added(sum(fact.bytes for fact in record.files.values()))
        return final

    def _fetch(self, identity: str, record: AdapterRecord) -> None:
        final = self.folder / identity
        with work_folder(self.folder) as work:
            inner = work / identity
            inner.mkdir()
            for name in (CONFIG_FILE, WEIGHTS_FILE, RECORD_FILE):
                self._fs.get_file(self._at(identity, name), str(inner / name))
            for name, fact in record.files.items():
                if file_info(inner / name) != fact:
                    raise AdapterDamagedError(f"{name} of {identity} in the store is not the one of its record")
            if self._record_here(identity) != record:  # unless another process has fetched it, and may be reading it
                self._remove_folder(final)
                self._publish(inner, final)

    def _put(self, inner: Path, record: AdapterRecord) -> bool:
        """Upload an adapter: its files, then its record."""
        self._fs.makedirs(self._at(record.id), exist_ok=True)
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            self._fs.put_file(str(inner / name), self._at(record.id, name))
        made = self._put_record(record)
        if made:  # only now: before the record is stored, the copy must not count as the store's
            self._remove_folder(self.folder / record.id)
            self._publish(inner, self.folder / record.id)
            self._copies.added(sum(fact.bytes for fact in record.files.values()))
        else:
            self._settle(record, inner.parent)
        return made

    def _settle(self, mine: AdapterRecord, work: Path) -> None:
        """Make the stored record match the stored files after another machine wrote its record first.

        Two processors may round differently, and the store has the files of whichever machine wrote last.
        """
        there = self._read_record(mine.id)
        if there is None or there.files == mine.files:
            return
        copy = work / "there"
        self._fs.get_file(self._at(mine.id, WEIGHTS_FILE), str(copy))
        if file_info(copy) == mine.files[WEIGHTS_FILE]:
            self._fs.pipe_file(self._at(mine.id, RECORD_FILE), mine.content())
            self._records.pop(mine.id)

    def _put_record(self, record: AdapterRecord) -> bool:
        path, data = self._at(record.id, RECORD_FILE), record.content()
        try:
            self._fs.pipe_file(path, data, mode="create")
        except FileExistsError:
            if self._read_record(record.id) is not None:
                return False
            self._fs.pipe_file(path, data)  # incomplete: its writer was interrupted
        self._seen[record.id] = time.monotonic()
        return True

    def delete(self, identity: str, names: Iterable[str] | None = None) -> bool:
        """Delete an adapter and its names; None searches for the names. False if it did not exist."""
        self._seen.pop(identity)
        if not self.exists(identity):
            return False
        names = self.names().get(identity, ()) if names is None else names
        self.discard(identity)
        for name in names:
            if self.meaning(name) == identity:
                self.unname(name)
        return True

    def discard(self, identity: str) -> None:
        """Remove an adapter but keep its names, before it is written again."""
        self._forget(identity)
        for name in (RECORD_FILE, WEIGHTS_FILE, CONFIG_FILE):
            with contextlib.suppress(FileNotFoundError):
                self._fs.rm_file(self._at(identity, name))
        with contextlib.suppress(OSError):  # object stores have no folders
            self._fs.rmdir(self._at(identity))

    # names

    def _read_name(self, name: str) -> str | None:
        try:
            return str(self._fs.cat_file(self._at(_NAMES, name)).decode("ascii", "replace")).strip()
        except FileNotFoundError:
            return None

    def _create_name(self, name: str, identity: str) -> None:
        self._fs.makedirs(self._at(_NAMES), exist_ok=True)
        self._fs.pipe_file(self._at(_NAMES, name), identity.encode(), mode="create")

    def _remove_name(self, name: str) -> None:
        self._fs.rm_file(self._at(_NAMES, name))


def _last_part(path: str, place: int = 1) -> str:
    return path.rstrip("/").split("/")[-place]


def open_files(folder: Path, url: str, max_copy_bytes: int = 2**62) -> AdapterFiles:
    """The store of the settings."""
    return SharedFiles(folder, url, max_copy_bytes) if url else AdapterFiles(folder)
