"""Fetches hash-pinned wheels from the package index, one by one, with pip.

Contract: `fetch_wheels` returns the wheels as files whose sha256 is the pinned one. They stay in a folder of
the caller's, so a fetch that was cut off goes on at the first wheel that is missing. pip does the talking,
since it knows the user's index, mirror, proxy and certificates; it runs as a process of its own and installs
nothing.
"""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from llgbm.errors import LLGBMError
from llgbm.pretrained.pinned_wheels import Wheel

Progress = Callable[[str, int, int | None], None]
"""Called with (stage, bytes done, bytes in all or None)."""

_POLL_SECONDS = 0.2


class SourceError(LLGBMError):
    """One source could not give the weights; the message says why."""


def fetch_wheels(wheels: tuple[Wheel, ...], kept: Path, work: Path, progress: Progress) -> list[Path]:
    """The wheels as checked files in `kept`, in their order.

    Args:
        wheels: what to fetch.
        kept: a folder that outlives a broken fetch. A whole wheel in it is not fetched again.
        work: an empty folder in the same file system, for what is not checked yet. The caller removes it.
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
    """Let pip fetch one wheel into the empty folder `into`; `progress` gets the bytes of it that have come.

    Raises:
        SourceError: pip is not installed, or could not fetch the wheel.
    """
    if importlib.util.find_spec("pip") is None:
        raise SourceError(
            f"pip fetches the wheels and is not installed for {sys.executable}; run 'python -m ensurepip'"
        )
    (into / "requirements.txt").write_text(wheel.requirement + "\n", encoding="utf-8")
    # -P: a pip.py in the current folder is not pip.
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    # Nothing is asked for twice, so a copy in pip's own cache would only take the same room again.
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
            f"{what} has sha256 {found} and {wanted} was expected; it was thrown away unread. "
            "If the package index is a mirror, its copy is broken or was changed"
        )


def file_sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def bytes_under(folder: Path) -> int:
    """Length of all files under `folder` together; 0 for a folder that does not exist."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:  # pip moves its files about while we count
            continue
    return total
