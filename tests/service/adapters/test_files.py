from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from llgbm.adapters.peft_io import content_digest, load_peft
from llgbm.config import lora_spec
from llgbm.errors import AdapterFormatError
from llgbm.lora import LoRAWeights
from service.adapters.errors import AdapterDamagedError, NameTakenError
from service.adapters.files import AdapterFiles
from service.adapters.records import CONFIG_FILE, RECORD_FILE, WEIGHTS_FILE
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


def test_what_is_written_is_read_and_is_a_peft_folder(files: AdapterFiles, weights: LoRAWeights) -> None:
    stored, made = files.write(weights, record(weights))
    assert made
    assert leftovers(files) == []
    assert content_digest(files.read(stored.id)) == content_digest(weights) == stored.digest
    assert load_peft(files.path(stored.id))[1] == BASE
    assert files.record(stored.id) == stored == AdapterFiles(files.folder).record(stored.id)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        assert stored.files[name].bytes == (files.path(stored.id) / name).stat().st_size


def test_writing_twice_keeps_the_first(files: AdapterFiles, weights: LoRAWeights) -> None:
    first, _ = files.write(weights, record(weights, created=1))
    second, made = files.write(weights, record(weights, created=2))
    assert not made
    assert second == first


def test_the_newest_comes_first_and_only_ids_count(files: AdapterFiles, weights: LoRAWeights) -> None:
    for number in (1, 2, 3):
        files.write(weights, record(weights, number, created=number % 3))
    (files.folder / "notes").mkdir()
    (files.folder / identity(9)).mkdir()  # an empty folder is not an adapter
    assert [r.id for r in files.records()] == [identity(2), identity(1), identity(3)]


@pytest.mark.parametrize("bad", ["", ".", "..", "../store", "lora 1", "/etc/passwd", ".hidden", "x" * 65, "a\0b"])
def test_what_is_not_an_id_never_reaches_the_disk(files: AdapterFiles, bad: str) -> None:
    assert not files.exists(bad)
    assert files.record(bad) is None
    assert files.resolve(bad) is None
    assert not files.delete(bad)
    assert not files.unname(bad)
    with pytest.raises(ValueError, match="not a valid name"):
        files.name(bad, identity(1))


def test_names_are_links_that_mean_one_adapter(files: AdapterFiles, weights: LoRAWeights) -> None:
    files.write(weights, record(weights, 1))
    files.write(weights, record(weights, 2))
    files.name("french", identity(1))
    files.name("french", identity(1))
    assert files.resolve("french") == identity(1)
    assert load_peft(files.folder / "french")[1] == BASE  # other programs may read the name
    with pytest.raises(NameTakenError):
        files.name("french", identity(2))
    files.name("fr", identity(1))
    assert files.names() == {identity(1): ["fr", "french"]}
    assert files.delete(identity(1))
    assert files.resolve("french") is None
    assert files.names() == {}
    files.name("french", identity(2))
    assert files.resolve("french") == identity(2)
    assert files.unname("french")
    assert not files.unname("french")


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


@pytest.mark.parametrize("content", ["", "{", "[]", '{"id": 3}'])
def test_a_folder_without_a_readable_record_is_replaced(
    files: AdapterFiles, weights: LoRAWeights, content: str
) -> None:
    stored, _ = files.write(weights, record(weights))
    (files.path(stored.id) / RECORD_FILE).write_text(content)
    fresh = AdapterFiles(files.folder)
    assert fresh.record(stored.id) is None
    again, made = fresh.write(weights, record(weights))
    assert made
    assert fresh.record(stored.id) == again


def test_deleting_hides_the_adapter_at_once_and_everywhere(files: AdapterFiles, weights: LoRAWeights) -> None:
    other_process = AdapterFiles(files.folder)
    stored, _ = files.write(weights, record(weights))
    assert other_process.record(stored.id) == stored
    assert files.delete(stored.id)
    assert not files.delete(stored.id)
    assert other_process.record(stored.id) is None
    assert other_process.records() == []
    with pytest.raises(FileNotFoundError):
        other_process.read(stored.id)
    assert leftovers(files) == []


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
