from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from llgbm.adapters.peft_io import load_peft
from llgbm.config import lora_spec
from llgbm.errors import AdapterFormatError
from llgbm.lora import LoRAWeights
from service.adapters.errors import AdapterDamagedError
from service.adapters.files import AdapterFiles
from service.adapters.records import WEIGHTS_FILE
from tests.fixtures import in_threads, random_lora
from tests.service.support.records import BASE, identity, record


@pytest.fixture(scope="module")
def weights() -> LoRAWeights:
    return random_lora(lora_spec("tiny"), 1)


@pytest.fixture
def files(tmp_path: Path) -> AdapterFiles:
    return AdapterFiles(tmp_path / "store")


def leftovers(files: AdapterFiles) -> list[str]:
    return [entry.name for entry in files.folder.iterdir() if entry.name.startswith(".")]


def test_only_folders_with_a_record_are_adapters(files: AdapterFiles) -> None:
    (files.folder / "notes").mkdir()
    (files.folder / identity(9)).mkdir()
    assert files.records() == []


def test_a_name_is_a_link_that_other_programs_may_read(files: AdapterFiles, weights: LoRAWeights) -> None:
    files.write(weights, record(weights, 1))
    files.name("french", identity(1))
    assert load_peft(files.folder / "french")[1] == BASE


def test_a_name_whose_adapter_is_gone_is_free_again(files: AdapterFiles, weights: LoRAWeights) -> None:
    files.write(weights, record(weights, 1))
    (files.folder / "french").symlink_to(identity(5))
    assert files.resolve("french") is None
    files.name("french", identity(1))
    assert files.resolve("french") == identity(1)


def test_changed_tensors_are_noticed(files: AdapterFiles, weights: LoRAWeights) -> None:
    stored, _ = files.write(weights, record(weights))
    path = files.path(stored.id) / WEIGHTS_FILE
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(AdapterDamagedError):
        files.read(stored.id)
    path.write_bytes(data[:-100])
    with pytest.raises(AdapterFormatError):
        files.read(stored.id)


def test_a_full_disk_is_an_error_of_its_own_and_leaves_nothing(tmp_path: Path) -> None:
    """In a child process, where the kernel refuses files above 8 kB as on a full disk."""
    code = f"""
import resource, signal
from pathlib import Path
from llgbm.config import lora_spec
from service.adapters.files import AdapterFiles
from service.adapters.errors import StoreFullError
from tests.fixtures import random_lora
from tests.service.support.records import record
files = AdapterFiles(Path({str(tmp_path)!r}))
weights = random_lora(lora_spec("tiny"), 1)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
try:
    files.write(weights, record(weights))
except StoreFullError as error:
    print("full:", error)
assert list(Path({str(tmp_path)!r}).iterdir()) == [], list(Path({str(tmp_path)!r}).iterdir())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("full: no room in")


def test_many_who_write_one_adapter_leave_one(files: AdapterFiles, weights: LoRAWeights) -> None:
    stores = [AdapterFiles(files.folder) for _ in range(4)]
    barrier = threading.Barrier(4)

    def write(store: AdapterFiles) -> bool:
        barrier.wait()
        return store.write(weights, record(weights))[1]

    assert sorted(in_threads(write, stores)) == [False, False, False, True]
    assert leftovers(files) == []
