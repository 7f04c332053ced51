"""Writers that are killed at each step and at random steps, and disks that are full at each step."""

from __future__ import annotations

import os
import random
import signal
import time
from itertools import count
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from llgbm.adapters.peft_io import content_digest
from llgbm.config import lora_spec
from service.adapter_id import ADAPTER_ID
from service.adapters.files import AdapterFiles
from service.adapters.work_folder import PREFIX
from tests.fixtures import random_lora
from tests.service.support.doomed import ENDURED, FULL, hold_work_folder, run_doomed, write_and_delete_for_ever
from tests.service.support.forkserver import CONTEXT
from tests.service.support.harness import wait_until
from tests.service.support.records import identity, record

NEVER = 10**6


def store_with_one(folder: Path) -> AdapterFiles:
    files = AdapterFiles(folder)
    weights = random_lora(lora_spec("tiny"), 1)
    files.write(weights, record(weights, 1))
    files.name("first", identity(1))
    return files


def content(files: AdapterFiles) -> dict[Path, bytes]:
    """All files of a store with their content, hidden ones included."""
    paths = sorted(files.folder.rglob("*"))
    return {path: path.read_bytes() if path.is_file() else b"" for path in paths}


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def whole(folder: Path) -> set[str]:
    """Ids of the adapters of a newly opened store. Each must match its record, and no other file may be left."""
    files = AdapterFiles(folder)
    records = files.records()
    for each in records:
        assert content_digest(files.read(each.id)) == each.digest
    ids = {each.id for each in records}
    assert ids == {path.name for path in folder.iterdir() if ADAPTER_ID.fullmatch(path.name)}
    assert leftovers(folder) == []
    return ids


@pytest.mark.parametrize(("job", "steps", "result"), [("write", 15, {1, 2}), ("delete", 5, set()), ("name", 1, {1})])
def test_killed_at_any_step_every_adapter_is_whole_or_not_there(
    job: str, steps: int, result: set[int], tmp_path: Path
) -> None:
    left_behind = 0
    for moment in count(1):
        folder = tmp_path / str(moment)
        store_with_one(folder)
        status = run_doomed(job, folder, "killed", moment)
        if status == 0:
            break
        assert status == -signal.SIGKILL
        left_behind += bool(leftovers(folder))
        kept = whole(folder)
        assert kept <= {identity(1), identity(2)}
        if job != "delete":
            assert identity(1) in kept
            assert AdapterFiles(folder).resolve("first") == identity(1)
        assert run_doomed(job, folder, "killed", NEVER) == 0  # the work can be repeated
        assert whole(folder) == set(map(identity, result))
    assert moment > steps
    assert (left_behind > 0) == (job != "name")


@pytest.mark.parametrize(("job", "steps"), [("write", 6), ("name", 1)])
def test_full_at_any_step_nothing_is_kept_and_what_exists_stays(job: str, steps: int, tmp_path: Path) -> None:
    refused = 0
    for moment in count(1):
        folder = tmp_path / str(moment)
        before = content(store_with_one(folder))
        status = run_doomed(job, folder, "disk full", moment)
        if status == 0:
            break
        assert status in (FULL, ENDURED)  # not every step matters for the result
        assert status == ENDURED or content(AdapterFiles(folder)) == before
        refused += status == FULL
        assert identity(1) in whole(folder)
    assert refused >= steps


def test_writers_that_are_killed_again_and_again_leave_whole_adapters_only(tmp_path: Path) -> None:
    """Three writers in one store; now and then one is killed and replaced."""
    randomness = random.Random(7)
    folder = tmp_path / "store"
    starts = count(3, 3_000_000)

    def start() -> BaseProcess:
        process = CONTEXT.Process(target=write_and_delete_for_ever, args=(str(folder), next(starts)), daemon=True)
        process.start()
        return process

    writers = [start() for _ in range(3)]
    wait_until(lambda: folder.exists() and any(path.name.startswith("lora-") for path in folder.iterdir()))
    kept: set[str] = set()
    for kills in count(1):
        if kills > 25 and len(kept) > 10:
            break
        assert kills < 500, "next to nothing was written"
        time.sleep(randomness.uniform(0.005, 0.06))
        victim = randomness.randrange(3)
        writers[victim].kill()
        writers[victim].join()
        writers[victim] = start()  # opening sweeps while the others write
        files = AdapterFiles(folder)
        now = {each.id for each in files.records()}
        lasting = {each for each in kept if int(each[5:], 16) % 3}
        assert lasting <= now  # adapters that nobody deletes are never lost
        kept = now
    for writer in writers:
        assert writer.is_alive()  # it would have died without its folder
        writer.kill()
        writer.join()
    found = whole(folder)
    assert {each for each in kept if int(each[5:], 16) % 3} <= found
    assert len(found) > 10
    names = AdapterFiles(folder).names()
    assert all(len(names[each]) == 1 for each in found if each in names)


def test_what_a_dead_writer_left_is_swept_and_a_living_ones_is_not(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    AdapterFiles(folder)
    ready = CONTEXT.Event()
    process = CONTEXT.Process(target=hold_work_folder, args=(str(folder), ready), daemon=True)
    process.start()
    assert ready.wait(60)
    (living,) = folder.glob(PREFIX + "*")
    os.utime(living, (1, 1))  # age does not matter
    AdapterFiles(folder)
    assert (living / "file").exists()
    process.kill()
    process.join()
    AdapterFiles(folder)
    assert not living.exists()
