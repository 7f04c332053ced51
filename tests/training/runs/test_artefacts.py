import json
import multiprocessing
from pathlib import Path

import pytest

from llgbm.errors import CacheMismatchError
from training.runs.artefacts import Artefact, read_manifest, relative_name, set_aside, write_artefact


def artefact(command: str = "fit", **details: object) -> Artefact:
    made_at = "2026-01-01T00:00:00+00:00"
    return Artefact("adapter", command, {"steps": 1}, "abc", made_at, 1.5, "1", details=details)


def write_many(workdir: Path, who: int, count: int) -> None:
    for i in range(count):
        write_artefact(workdir, workdir / f"{who}" / f"{i}", artefact(str(who)))


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    write_artefact(tmp_path, tmp_path / "b", artefact(task="é", places=[1]))
    write_artefact(tmp_path, tmp_path / "a" / "x", artefact())
    assert read_manifest(tmp_path) == {"a/x": artefact(), "b": artefact(task="é", places=[1])}
    assert list(read_manifest(tmp_path)) == ["a/x", "b"]


def test_an_artefact_made_again_replaces_its_entry(tmp_path: Path) -> None:
    write_artefact(tmp_path, tmp_path / "a", artefact("first"))
    write_artefact(tmp_path, tmp_path / "x" / ".." / "a", artefact("second"))
    assert {name: a.command for name, a in read_manifest(tmp_path).items()} == {"a": "second"}


def test_without_a_manifest_there_are_no_artefacts(tmp_path: Path) -> None:
    assert read_manifest(tmp_path / "nowhere") == {}


def test_two_processes_lose_no_entry(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=write_many, args=(tmp_path, who, 20)) for who in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert set(read_manifest(tmp_path)) == {f"{who}/{i}" for who in range(2) for i in range(20)}
    assert not list(tmp_path.glob(".*.tmp"))


@pytest.mark.parametrize("content", ["", "[]", '{"version": 1}', '{"version": 1, "artefacts": {"a": {}}}'])
def test_a_foreign_manifest_is_refused_and_kept(tmp_path: Path, content: str) -> None:
    (tmp_path / "artefacts.json").write_text(content)
    for act in (lambda: read_manifest(tmp_path), lambda: write_artefact(tmp_path, "a", artefact())):
        with pytest.raises(CacheMismatchError, match="is not a manifest of artefacts"):
            act()
    assert (tmp_path / "artefacts.json").read_text() == content


def test_another_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "artefacts.json").write_text(json.dumps({"version": 2, "artefacts": {}}))
    with pytest.raises(CacheMismatchError, match="has version 2, this code reads 1"):
        read_manifest(tmp_path)


def test_what_is_set_aside_takes_the_next_free_name(tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / "round").mkdir()
        (tmp_path / "a.jsonl").touch()
        assert set_aside(tmp_path / "round") == tmp_path / f"round.{number}"
        assert set_aside(tmp_path / "a.jsonl") == tmp_path / f"a.{number}.jsonl"
    assert {path.name for path in tmp_path.iterdir()} == {"round.1", "round.2", "a.1.jsonl", "a.2.jsonl"}


def test_a_path_outside_of_the_workdir_is_named_in_full(tmp_path: Path) -> None:
    assert relative_name(tmp_path / "w", tmp_path / "w" / "a" / "b") == "a/b"
    assert relative_name(tmp_path / "w", tmp_path / "other") == str((tmp_path / "other").resolve())
