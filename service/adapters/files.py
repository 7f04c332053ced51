"""The folder of adapters on disk: one PEFT folder for each id, names as symbolic links to them.

    {store}/{id}/adapter_config.json, adapter_model.safetensors    exactly as PEFT writes them
    {store}/{id}/llgbm.json                                        what else is known: the record
    {store}/{name} -> {id}                                         a name is a link, so other readers can use it too

A folder is written under a temporary name, synced and renamed, and removed by renaming it away first: a reader, in this
process or another, sees a whole adapter or none. Adapters are immutable. What a killed process left is swept when the
store is opened. Everything here blocks and may run in any thread.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from llgbm.adapters.peft_io import content_digest, load_peft, save_peft
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
        """The folder of an adapter, there or not."""
        return self.folder / identity

    def local(self, identity: str) -> Path:
        """The folder of an adapter that is in the store, on this machine; brought here first if it was elsewhere.

        Raises:
            FileNotFoundError: there is no such adapter.
        """
        return self.path(identity)

    def exists(self, identity: str) -> bool:
        """Whether there is such an adapter on disk now."""
        return ADAPTER_ID.fullmatch(identity) is not None and (self.folder / identity / CONFIG_FILE).is_file()

    def record(self, identity: str) -> AdapterRecord | None:
        """The record of an adapter, None if there is no such adapter or its record is not readable."""
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
        """The record in this machine's folder, if it can be read."""
        try:
            return parse_record((self.folder / identity / RECORD_FILE).read_bytes(), identity)
        except OSError:
            return None

    def read_records(self, identities: Iterable[str]) -> list[AdapterRecord]:
        """The records of those that are there, read anew."""
        found = (self._read_record(identity) for identity in identities if self.exists(identity))
        return [record for record in found if record is not None]

    # everything: these read the whole store, and no request should, see `service.adapters.index`

    def state(self) -> object:
        """Something that is different when the store has changed; None if only a look at all of it can say."""
        return self.folder.stat().st_mtime_ns

    def identities(self) -> Iterator[str]:
        """What may be an adapter, one after the other."""
        with os.scandir(self.folder) as entries:
            yield from (entry.name for entry in entries if ADAPTER_ID.fullmatch(entry.name))

    def name_marks(self) -> Iterator[tuple[str, str]]:
        """Each name, and something that is different when it means something else."""
        with os.scandir(self.folder) as entries:
            for entry in entries:
                if entry.is_symlink() and ADAPTER_NAME.fullmatch(entry.name):
                    yield entry.name, self.meaning(entry.name) or ""

    def records(self) -> list[AdapterRecord]:
        """All adapters, the newest first."""
        return sorted(self.read_records(self.identities()), key=lambda record: (-record.created, record.id))

    def names(self) -> dict[str, list[str]]:
        """Id -> its names, sorted."""
        found: dict[str, list[str]] = {}
        for name in sorted(name for name, _ in self.name_marks()):
            identity = self.meaning(name)
            if identity is not None:
                found.setdefault(identity, []).append(name)
        return found

    def write(self, weights: LoRAWeights, record: AdapterRecord) -> tuple[AdapterRecord, bool]:
        """Store an adapter.

        Returns:
            The record with its file facts, and whether the adapter is new; one that another process wrote first stays.

        Raises:
            StoreFullError: no room; nothing was kept.
        """
        with (
            room_for(f"an adapter of {weights.num_bytes} bytes"),
            self._written(weights, record) as (inner, mine),
        ):
            made = self._publish(inner, self.folder / record.id)
        return (mine if made else self.record(record.id) or mine), made

    @contextmanager
    def _written(self, weights: LoRAWeights, record: AdapterRecord) -> Iterator[tuple[Path, AdapterRecord]]:
        """The adapter in a folder that nobody else looks at, gone at the end, and its record with file facts."""
        with work_folder(self.folder) as work:
            inner = work / record.id
            save_peft(weights, inner, base_id=record.base)
            facts = {name: file_info(inner / name) for name in (CONFIG_FILE, WEIGHTS_FILE)}
            record = record.model_copy(update={"files": facts})
            _write_synced(inner / RECORD_FILE, record.content())
            _sync_folder(inner)
            yield inner, record

    def _publish(self, inner: Path, final: Path) -> bool:
        for _ in range(3):
            try:
                inner.rename(final)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                if (final / CONFIG_FILE).is_file() and self._record_here(final.name) is not None:
                    return False
                # Something without a readable record has the place: move it away whole, and try again.
                self._remove_folder(final)
            else:
                _sync_folder(self.folder)
                return True
        raise AdapterDamagedError(f"{final} cannot be replaced; remove it by hand")

    def read(self, identity: str) -> LoRAWeights:
        """The tensors of an adapter, checked against its record.

        Raises:
            FileNotFoundError: there is no such adapter (any more).
            AdapterDamagedError: the tensors are not those that were written.
            AdapterFormatError: the files are not a valid adapter.
        """
        if self.record(identity) is None:
            raise FileNotFoundError(errno.ENOENT, "no such adapter", str(self.folder / identity))
        weights, _ = load_peft(self.local(identity))
        record = self.record(identity)  # as of these files: they may have been made anew in between
        if record is None:
            raise FileNotFoundError(errno.ENOENT, "no such adapter", str(self.folder / identity))
        if content_digest(weights) != record.digest:
            raise AdapterDamagedError(f"the tensors of {identity} are not those that were stored")
        return weights

    def delete(self, identity: str, names: Iterable[str] | None = None) -> bool:
        """Remove an adapter and its names; False if it was not there.

        Args:
            names: those that it has; looked for in the whole store if they are not given.
        """
        self._records.pop(identity)
        if ADAPTER_ID.fullmatch(identity) is None or not (self.folder / identity).is_dir():
            return False
        for name in self.names().get(identity, ()) if names is None else names:
            if self.meaning(name) == identity:
                self.unname(name)
        return self._remove_folder(self.folder / identity)

    def discard(self, identity: str) -> None:
        """Remove an adapter's folder but keep its names, for one that is about to be written again."""
        self._records.pop(identity)
        self._remove_folder(self.folder / identity)

    def _remove_folder(self, path: Path) -> bool:
        grave = unused_path(self.folder)  # held by nobody: whoever sweeps it helps
        try:
            path.rename(grave)
        except FileNotFoundError:
            return False
        _sync_folder(self.folder)
        shutil.rmtree(grave, ignore_errors=True)
        return True

    # names

    def resolve(self, name_or_id: str) -> str | None:
        """The id of an adapter by its id or one of its names; None if there is none."""
        if ADAPTER_ID.fullmatch(name_or_id):
            return name_or_id if self.exists(name_or_id) else None
        target = self.meaning(name_or_id)
        return target if target is not None and self.exists(target) else None

    def meaning(self, name: str) -> str | None:
        """The id that a name stands for, whether or not there is such an adapter; None if there is no such name."""
        if ADAPTER_NAME.fullmatch(name) is None:
            return None
        try:
            return str((self.folder / name).readlink())
        except OSError:
            return None

    def name(self, name: str, identity: str) -> None:
        """Give an adapter a name. A name whose adapter is gone is free again.

        Raises:
            NameTakenError: it is the name of another adapter.
            ValueError: it is not a valid name.
            StoreFullError: no room for it.
        """
        require_name(name)
        link = self.folder / name
        for _ in range(3):
            try:
                with room_for(f"the name {name!r}"):
                    link.symlink_to(identity, target_is_directory=True)
            except FileExistsError:
                held_by = self.resolve(name)
                if held_by == identity:
                    return
                if held_by is not None or not link.is_symlink():
                    raise NameTakenError(
                        f"the name {name!r} belongs to {held_by or 'something else'}; choose another"
                    ) from None
                self.unname(name)
            else:
                return
        raise NameTakenError(f"the name {name!r} is being changed by others; try again")

    def unname(self, name: str) -> bool:
        """Take a name away; False if it was not there."""
        link = self.folder / name
        if ADAPTER_NAME.fullmatch(name) is None or not link.is_symlink():
            return False
        try:
            link.unlink()
        except FileNotFoundError:
            return False
        return True


def is_full(error: OSError) -> bool:
    """Whether it says that a disk, or what one may have of it, is used up."""
    return error.errno in _FULL


@contextmanager
def room_for(what: str) -> Iterator[None]:
    """Where a full disk is a StoreFullError that says for what there was no room."""
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
        raise StoreFullError(
            f"no room in the store for {what}; delete adapters, or free some of its disk, and try again"
        ) from error


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
