"""Processes that are killed, or see a full disk, at a chosen step of their work on a store."""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from llgbm.config import lora_spec
from service.adapters.errors import StoreFullError
from service.adapters.files import AdapterFiles
from tests.fixtures import random_lora
from tests.service.support.forkserver import CONTEXT
from tests.service.support.records import identity, record

FULL, ENDURED = 3, 4
"""Exit status of a job that ended with StoreFullError, and of one that succeeded despite the full disk."""

Fate = Literal["killed", "disk full"]
_TOUCHES = frozenset({"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.scandir"})
_NEEDS_ROOM = frozenset({"os.mkdir", "os.rename", "os.symlink"})


def _write(files: AdapterFiles) -> None:
    weights = random_lora(lora_spec("tiny"), 2)
    files.write(weights, record(weights, 2))


def _delete(files: AdapterFiles) -> None:
    files.delete(identity(1))


def _name(files: AdapterFiles) -> None:
    files.name("second", identity(1))


JOBS: dict[str, Callable[[AdapterFiles], None]] = {"write": _write, "delete": _delete, "name": _name}


def run_doomed(job: str, folder: Path, fate: Fate, moment: int) -> int:
    """Run a job; `fate` strikes at its disk operation `moment`. Returns the exit status; 0 if there are fewer."""
    process = CONTEXT.Process(target=_doomed, args=(job, str(folder), fate, moment))
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def _doomed(job: str, folder: str, fate: Fate, moment: int) -> None:
    files = AdapterFiles(Path(folder))
    random_lora(lora_spec("tiny"), 0)  # files that torch opens at first use are not counted
    left = moment

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if event not in _TOUCHES or (fate == "disk full" and not _takes_room(event, arguments)):
            return
        left -= 1
        if left == 0 and fate == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if left == 0:
            raise OSError(errno.ENOSPC, "No space left on device")

    sys.addaudithook(watch)
    try:
        JOBS[job](files)
    except StoreFullError:
        os._exit(FULL)
    os._exit(ENDURED if left <= 0 else 0)  # without the interpreter's clean-up, which opens files too


def _takes_room(event: str, arguments: tuple[Any, ...]) -> bool:
    return event in _NEEDS_ROOM or (event == "open" and bool(arguments[2] & (os.O_WRONLY | os.O_RDWR)))


def write_and_delete_for_ever(folder: str, start: int) -> None:
    """Write adapters, each with a name, and delete every third one."""
    files = AdapterFiles(Path(folder))
    for number in range(start, sys.maxsize):
        weights = random_lora(lora_spec("tiny"), number)
        files.write(weights, record(weights, number))
        files.name(f"n{number}", identity(number))
        if number % 3 == 0:
            files.delete(identity(number))


def hold_work_folder(folder: str, ready: Any) -> None:
    """Hold a work folder until killed."""
    from service.adapters.work_folder import work_folder

    with work_folder(Path(folder)) as path:
        (path / "file").write_text("x")
        ready.set()
        time.sleep(600)
