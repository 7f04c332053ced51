"""DeltaCache: measured deltas on disk, with their measurement.

    {folder}/manifest.json          measurement, and for each adapter its content digest and its file's sha256
    {folder}/base_activation.npy    (probes, layers, hidden) float32
    {folder}/{adapter_id}.npy       (probes, layers, hidden) float32

A cache of another measurement is refused, and so is a file that does not match the manifest or belongs to another
adapter of the same id. Files are written to a temporary name, synced and renamed, and the manifest is changed under a
lock. So two processes can fill one cache, and a reader sees whole entries or none.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from llgbm.errors import CacheMismatchError, ConfigError
from llgbm.files.synced import replace_file
from llgbm.measuring.measurement import Activation, Delta, Measurement

MANIFEST_FILE = "manifest.json"
FORMAT_VERSION = 1
_BASE_ID = "base_activation"
_ADAPTER_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


class DeltaCache:
    """The deltas of one measurement.

    Args:
        folder: created if missing.
        measurement: of all deltas in the cache; None takes the manifest's.

    Raises:
        CacheMismatchError: the folder holds a cache of another measurement, a damaged or foreign manifest, or, with
            `measurement=None`, no manifest.
    """

    def __init__(self, folder: Path, measurement: Measurement | None = None) -> None:
        self.folder = folder
        if measurement is None:
            stored = self._read_manifest()
            if stored is None:
                raise CacheMismatchError(f"there is no delta cache in {folder}; measure the deltas first")
            measurement = _measurement_in(stored, folder)
        self.measurement = measurement
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.folder / ".lock")
        self._manifest()

    def ids(self) -> tuple[str, ...]:
        """Ids of the adapters with a delta here, sorted."""
        return tuple(sorted(self._manifest()["adapters"]))

    def digest_of(self, adapter_id: str) -> str | None:
        """Content digest of the adapter behind the delta of `adapter_id`; None without a delta."""
        entry = _entry(self._manifest(), _file_stem(adapter_id))
        return None if entry is None else entry["adapter"]

    def put(self, adapter_id: str, delta: Delta, *, adapter_digest: str) -> None:
        """Store the delta of an adapter. If two processes measured it, the first one's delta stays.

        Args:
            adapter_digest: `llgbm.adapters.peft_io.content_digest` of the measured float32 adapter.

        Raises:
            CacheMismatchError: the delta has another measurement, or another adapter of this id is here.
            ConfigError: the id cannot be a file name.
        """
        self.measurement.require_same(delta.measurement, what=f"the delta of {adapter_id}")
        self._write(_file_stem(adapter_id), delta.values, adapter_digest)

    def get(self, adapter_id: str, *, adapter_digest: str | None = None) -> Delta | None:
        """The delta of an adapter, or None if it was not measured.

        Args:
            adapter_digest: content digest of the expected adapter; None does not check.

        Raises:
            CacheMismatchError: the file is damaged or foreign, or was measured on another adapter of this id.
        """
        values = self._read(_file_stem(adapter_id), adapter_digest)
        return None if values is None else Delta(values, self.measurement)

    def put_base(self, activation: Activation) -> None:
        """Store the activation of the plain base.

        Raises:
            CacheMismatchError: it has another measurement.
        """
        self.measurement.require_same(activation.measurement, what="the base activation")
        self._write(_BASE_ID, activation.values, self.measurement.revision)

    def get_base(self) -> Activation | None:
        """The activation of the plain base, or None if it is not here.

        Raises:
            CacheMismatchError: the file is damaged or foreign.
        """
        values = self._read(_BASE_ID, self.measurement.revision)
        return None if values is None else Activation(values, self.measurement)

    def discard(self, adapter_id: str) -> None:
        """Remove an adapter's delta, or the base's activation by the id "base_activation", if it is here."""
        name = adapter_id if adapter_id == _BASE_ID else _file_stem(adapter_id)
        with self._lock:
            manifest = self._manifest()
            if _entry(manifest, name) is None:
                return
            if name == _BASE_ID:
                manifest["base"] = None
            else:
                del manifest["adapters"][name]
            self._store_manifest(manifest)
            self._path(name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.npy"

    def _write(self, name: str, values: Tensor, owner: str) -> None:
        buffer = io.BytesIO()
        np.save(buffer, values.detach().float().contiguous().numpy(), allow_pickle=False)
        data = buffer.getvalue()
        with self._lock:
            manifest = self._manifest()
            entry = _entry(manifest, name)
            if entry is not None and entry["adapter"] != owner:
                raise _other_adapter(name, self.folder)
            if entry is not None and self._path(name).is_file():
                return
            replace_file(self._path(name), data)
            new = {"adapter": owner, "sha256": hashlib.sha256(data).hexdigest()}
            if name == _BASE_ID:
                manifest["base"] = new
            else:
                manifest["adapters"][name] = new
            self._store_manifest(manifest)

    def _read(self, name: str, owner: str | None) -> Tensor | None:
        while True:
            entry = _entry(self._manifest(), name)
            if entry is None:
                return None
            if owner is not None and entry["adapter"] != owner:
                raise _other_adapter(name, self.folder)
            try:
                data = self._path(name).read_bytes()
            except FileNotFoundError:
                data = b""
            if hashlib.sha256(data).hexdigest() == entry["sha256"]:
                break
            # another process may have replaced the entry between the two reads: then read the new one
            if _entry(self._manifest(), name) == entry:
                raise CacheMismatchError(
                    f"{self._path(name)} is damaged, missing or not the file that {MANIFEST_FILE} lists; "
                    f"call discard({name!r}), or delete the folder, and measure again"
                )
        array = np.load(io.BytesIO(data), allow_pickle=False)
        if array.shape != self.measurement.shape or array.dtype != np.float32:
            raise CacheMismatchError(
                f"{self._path(name)} holds {array.dtype} {array.shape}, expected float32 {self.measurement.shape}"
            )
        return torch.from_numpy(array)

    def _manifest(self) -> dict[str, Any]:
        """The manifest, checked; an empty one if there is none yet."""
        stored = self._read_manifest()
        if stored is None:
            return {
                "version": FORMAT_VERSION,
                "measurement": self.measurement.to_dict(),
                "base": None,
                "adapters": {},
            }
        self.measurement.require_same(_measurement_in(stored, self.folder), what=f"the delta cache in {self.folder}")
        return stored

    def _read_manifest(self) -> dict[str, Any] | None:
        path = self.folder / MANIFEST_FILE
        try:
            stored = json.loads(path.read_text("utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise CacheMismatchError(
                f"{path} is damaged or not JSON ({error}); delete the folder and measure again"
            ) from error
        if not isinstance(stored, dict) or stored.get("version") != FORMAT_VERSION or not _well_formed(stored):
            raise CacheMismatchError(
                f"{path} is not the manifest of a delta cache of version {FORMAT_VERSION}; name another "
                "folder, or delete it"
            )
        return stored

    def _store_manifest(self, manifest: Mapping[str, Any]) -> None:
        data = json.dumps(manifest, indent=1, sort_keys=True) + "\n"
        replace_file(self.folder / MANIFEST_FILE, data.encode())


def _entry(manifest: Mapping[str, Any], name: str) -> dict[str, str] | None:
    found: dict[str, str] | None = manifest["base"] if name == _BASE_ID else manifest["adapters"].get(name)
    return found


def _measurement_in(manifest: Mapping[str, Any], folder: Path) -> Measurement:
    try:
        return Measurement.from_dict(manifest["measurement"])
    except CacheMismatchError as error:
        raise CacheMismatchError(f"{folder / MANIFEST_FILE}: {error}") from error


def _well_formed(manifest: Mapping[str, Any]) -> bool:
    adapters, base = manifest.get("adapters"), manifest.get("base")
    if not isinstance(adapters, dict) or not isinstance(manifest.get("measurement"), dict) or "base" not in manifest:
        return False
    entries = [*adapters.values(), *([] if base is None else [base])]
    return all(isinstance(e, dict) and e.keys() >= {"adapter", "sha256"} for e in entries)


def _file_stem(adapter_id: str) -> str:
    if adapter_id == _BASE_ID or not _ADAPTER_ID.fullmatch(adapter_id):
        raise ConfigError(
            f"adapter id {adapter_id!r} cannot name a file: use up to 200 letters, digits, '.', '_' and '-', "
            f"a letter or digit first, and not {_BASE_ID!r}"
        )
    return adapter_id


def _other_adapter(name: str, folder: Path) -> CacheMismatchError:
    return CacheMismatchError(
        f"the delta of {name} in {folder} was measured on another adapter of that name; if it was trained again, call "
        f"discard({name!r}) and measure it again"
    )
