"""Local copies of a remote store are limited in bytes. The least recently used are removed first, and fetched again."""

from __future__ import annotations

import os
import time
from pathlib import Path

from llgbm.adapters.peft_io import content_digest
from llgbm.config import lora_spec
from service.adapters import copies
from service.adapters.shared_files import SharedFiles
from tests.fixtures import random_lora
from tests.service.support.records import identity, record

WEIGHTS = random_lora(lora_spec("tiny"), 1)


def there(files: SharedFiles) -> list[str]:
    return sorted(path.name for path in files.folder.iterdir())


def aged(files: SharedFiles, number: int, seconds: float) -> None:
    os.utime(files.path(identity(number)), (time.time() - seconds,) * 2)


def test_the_least_recently_used_leave_and_come_back(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/shared"
    source = SharedFiles(tmp_path / "source", url)
    for number in range(1, 6):
        source.write(WEIGHTS, record(WEIGHTS, number))
    size = sum(file.stat().st_size for file in source.path(identity(1)).iterdir())
    files = SharedFiles(tmp_path / "copies", url, max_copy_bytes=int(3.5 * size))
    for number in (1, 2, 3):
        files.local(identity(number))
        aged(files, number, 1000 - number)
    files.local(identity(1))  # used again
    files.local(identity(4))
    assert there(files) == [identity(1), identity(3), identity(4)]
    assert content_digest(files.read(identity(2))) == content_digest(WEIGHTS)


def test_none_that_was_used_within_a_minute_leaves(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/shared"
    source = SharedFiles(tmp_path / "source", url)
    files = SharedFiles(tmp_path / "copies", url, max_copy_bytes=0)
    for number in range(1, 4):
        source.write(WEIGHTS, record(WEIGHTS, number))
        files.local(identity(number))
    assert len(there(files)) == 3
    aged(files, 2, copies.IN_USE_SECONDS + 1)
    files._copies.make_room()
    assert there(files) == [identity(1), identity(3)]


def test_what_earlier_processes_left_is_counted_at_the_start(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/shared"
    source = SharedFiles(tmp_path / "source", url)
    files = SharedFiles(tmp_path / "copies", url)
    for number in range(1, 4):
        source.write(WEIGHTS, record(WEIGHTS, number))
        files.local(identity(number))
        aged(files, number, 1000)
    SharedFiles(tmp_path / "copies", url, max_copy_bytes=1)
    assert there(files) == []
