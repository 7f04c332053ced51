"""The folder of adapters on disk: one PEFT folder for each id, names as symbolic links to them.

    {store}/{id}/adapter_config.json, adapter_model.safetensors    exactly as PEFT writes them
    {store}/{id}/llgbm.json                                        all other facts: the record
    {store}/{name} -> {id}                                         a name is a link, for other software too

A folder is written under a temporary name, synced and renamed. To remove it, it is first renamed. So a reader in any
process sees a complete adapter or none. Adapters are immutable. Files of killed processes are removed when the store
is opened. All methods block and may run in any thread.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from llgbm.adapters.peft_io import content_digest, load_peft, save_peft
from llgbm.files.synced import sync, write_synced
from llgbm.lora import LoRAWeights
from service.adapter_id import ADAPTER_ID
from service.adapters.errors import AdapterDamagedError, NameTakenError, StoreFullError
from service.adapters.recent import Recent
from service.adapters.records import (
    ADAPTER_NAME,
    CONFIG_FILE,
    RECORD_FILE,
    WEIGHTS_FILE,
    AdapterRecord,
    file_info,
    parse_record,
    require_name,
)
from service.adapters.work_folder import sweep, unused_path, work_folder

_KEPT_RECORDS = 1000
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class AdapterFiles:
    """The store's folder, shared by any number of processes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._records = Recent[AdapterRecord](_KEPT_RECORDS)
        sweep(folder)

    def path(self, identity: str) -> Path:
        """The folder of an adapter, whether or not it exists."""
        return self.folder / identity

    def local(self, identity: str) -> Path:
        """The local folder of an adapter in the store; fetched first if the store is remote.

        Raises:
            FileNotFoundError: the adapter does not exist.
        """
        return self.path(identity)

    def exists(self, identity: str) -> bool:
        """Whether the adapter is on disk now."""
        return ADAPTER_ID.fullmatch(identity) is not None and (self.folder / identity / CONFIG_FILE).is_file()

    def record(self, identity: str) -> AdapterRecord | None:
        """The record of an adapter; None if there is no such adapter or its record is unreadable."""
        if not self.exists(identity):
            self._records.pop(identity)
            return None
        known = self._records.get(identity)
        if known is None:
            known = self._read_record(identity)
            if known is not None:
                self._records[identity] = known
        return known

    def _read_record(self, identity: str) -> AdapterRecord | None:
        return self._record_here(identity)

    def _record_here(self, identity: str) -> AdapterRecord | None:
        """The record in the local folder; None if it is unreadable."""
        try:
            return parse_record((self.folder / identity / RECORD_FILE).read_bytes(), identity)
        except OSError:
            return None

    def read_records(self, identities: Iterable[str]) -> list[AdapterRecord]:
        """The records of existing adapters, read again from the store."""
        found = (self._read_record(identity) for identity in identities if self.exists(identity))
        return [record for record in found if record is not None]

    # These read the whole store; requests use `service.adapters.index` instead.

    def state(self) -> object:
        """A value that differs after a change of the store; None if only a full scan can tell."""
        return self.folder.stat().st_mtime_ns

    def identities(self) -> Iterator[str]:
        """Ids of folders that may be adapters."""
        with os.scandir(self.folder) as entries:
            yield from (entry.name for entry in entries if ADAPTER_ID.fullmatch(entry.name))

    def name_marks(self) -> Iterator[tuple[str, str]]:
        """Each name, and a value that differs after a change of its meaning."""
        with os.scandir(self.folder) as entries:
            for entry in entries:
                if entry.is_symlink() and ADAPTER_NAME.fullmatch(entry.name):
                    yield entry.name, self.meaning(entry.name) or ""

    def records(self) -> list[AdapterRecord]:
        """All records, newest first."""
        return sorted(self.read_records(self.identities()), key=lambda record: (-record.created, record.id))

    def names(self) -> dict[str, list[str]]:
        """Id -> its sorted names."""
        found: dict[str, list[str]] = {}
        for name in sorted(name for name, _ in self.name_marks()):
            identity = self.meaning(name)
            if identity is not None:
                found.setdefault(identity, []).append(name)
        return found

    def write(self, weights: LoRAWeights, record: AdapterRecord) -> tuple[AdapterRecord, bool]:
        """Store an adapter.

        Returns:
            The record with its file facts, and whether the adapter is new. The first process to write it wins.

        Raises:
            StoreFullError: no room, on this disk or in the store; no adapter was stored.
        """
        there = self.record(record.id)
        if there is not None:
            return there, False
        with room_for(f"an adapter of {weights.num_bytes} bytes"), work_folder(self.folder) as work:
            inner = work / record.id
            save_peft(weights, inner, base_id=record.base)
            facts = {name: file_info(inner / name) for name in (CONFIG_FILE, WEIGHTS_FILE)}
            record = record.model_copy(update={"files": facts})
            write_synced(inner / RECORD_FILE, record.content())
            sync(inner)
            made = self._put(inner, record)
        return (record if made else self.record(record.id) or record), made

    def _put(self, inner: Path, record: AdapterRecord) -> bool:
        """Move the complete folder `inner` to its place in the store; False if the adapter is already there."""
        return self._publish(inner, self.folder / record.id)

    def _publish(self, inner: Path, final: Path) -> bool:
        for _ in range(3):
            try:
                inner.rename(final)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                if (final / CONFIG_FILE).is_file() and self._record_here(final.name) is not None:
                    return False
                # A folder without a readable record is in the way: remove it and try again.
                self._remove_folder(final)
            else:
                sync(self.folder)
                return True
        raise AdapterDamagedError(f"{final} cannot be replaced; remove it by hand")

    def read(self, identity: str) -> LoRAWeights:
        """The tensors of an adapter, verified against its record.

        Raises:
            FileNotFoundError: the adapter does not exist (any more).
            AdapterDamagedError: the tensors differ from the record's digest.
            AdapterFormatError: the files are not a valid adapter.
        """
        if self.record(identity) is None:
            raise FileNotFoundError(errno.ENOENT, "no such adapter", str(self.folder / identity))
        weights, _ = load_peft(self.local(identity))
        record = self.record(identity)  # read again: the adapter may have been replaced meanwhile
        if record is None:
            raise FileNotFoundError(errno.ENOENT, "no such adapter", str(self.folder / identity))
        if content_digest(weights) != record.digest:
            raise AdapterDamagedError(f"the tensors of {identity} are not those that were stored")
        return weights

    def delete(self, identity: str, names: Iterable[str] | None = None) -> bool:
        """Delete an adapter and its names; False if it did not exist.

        Args:
            names: its names; None searches the whole store for them.
        """
        self._records.pop(identity)
        if ADAPTER_ID.fullmatch(identity) is None or not (self.folder / identity).is_dir():
            return False
        for name in self.names().get(identity, ()) if names is None else names:
            if self.meaning(name) == identity:
                self.unname(name)
        return self._remove_folder(self.folder / identity)

    def discard(self, identity: str) -> None:
        """Remove an adapter's folder but keep its names, before it is written again."""
        self._records.pop(identity)
        self._remove_folder(self.folder / identity)

    def _remove_folder(self, path: Path) -> bool:
        grave = unused_path(self.folder)  # not locked, so any process may sweep it
        try:
            path.rename(grave)
        except FileNotFoundError:
            return False
        sync(self.folder)
        shutil.rmtree(grave, ignore_errors=True)
        return True

    # names

    def resolve(self, name_or_id: str) -> str | None:
        """The id of an adapter from its id or one of its names; None if it does not exist."""
        if ADAPTER_ID.fullmatch(name_or_id):
            return name_or_id if self.exists(name_or_id) else None
        target = self.meaning(name_or_id)
        return target if target is not None and self.exists(target) else None

    def meaning(self, name: str) -> str | None:
        """The id that a name points to, whether or not that adapter exists; None for an unknown name."""
        return self._read_name(name) if ADAPTER_NAME.fullmatch(name) else None

    def _read_name(self, name: str) -> str | None:
        try:
            return str((self.folder / name).readlink())
        except OSError:
            return None

    def name(self, name: str, identity: str) -> None:
        """Give an adapter a name. The name of a deleted adapter can be used again.

        Raises:
            NameTakenError: another adapter has this name.
            ValueError: the name is invalid.
            StoreFullError: the disk is full.
        """
        require_name(name)
        for _ in range(3):
            try:
                with room_for(f"the name {name!r}"):
                    self._create_name(name, identity)
            except FileExistsError:
                held_by = self.resolve(name)
                if held_by == identity:
                    return
                if held_by is not None:
                    raise NameTakenError(f"the name {name!r} belongs to {held_by}; choose another") from None
                self.unname(name)
            else:
                return
        raise NameTakenError(
            f"the name {name!r} belongs to something else or is being changed by others; choose another or try again"
        )

    def _create_name(self, name: str, identity: str) -> None:
        """Create a name; FileExistsError if there is one."""
        (self.folder / name).symlink_to(identity, target_is_directory=True)

    def unname(self, name: str) -> bool:
        """Remove a name; False if it did not exist."""
        if ADAPTER_NAME.fullmatch(name) is None:
            return False
        try:
            self._remove_name(name)
        except FileNotFoundError:
            return False
        return True

    def _remove_name(self, name: str) -> None:
        """Remove a name; FileNotFoundError if it does not exist."""
        link = self.folder / name
        if not link.is_symlink():
            raise FileNotFoundError(errno.ENOENT, "no such name", str(link))
        link.unlink()


def is_full(error: OSError) -> bool:
    """Whether the error means a full disk or an exceeded quota."""
    return error.errno in _FULL


@contextmanager
def room_for(what: str) -> Iterator[None]:
    """Turn a full disk inside the block into a StoreFullError that names `what`."""
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
        raise StoreFullError(
            f"no room in the store for {what}; delete adapters, or free some of its disk, and try again"
        ) from error
