import io
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from training.cli.config import config_digest
from training.runs.artefacts import read_manifest
from training.runs.log import RunLog, code_version, git_commit
from training.runs.metrics import read_metrics


@dataclass(frozen=True)
class Config:
    workdir: Path = Path("runs")
    steps: int = 3


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    captured = capsys.readouterr()
    assert captured.out == ""
    return [json.loads(line) for line in captured.err.splitlines()]


def test_without_a_terminal_log_lines_are_json_on_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RunLog(tmp_path, "fit", Config()) as log:
        log.logger.info("hello", n=1)
    found = lines(capsys)
    assert [line["event"] for line in found] == ["started", "hello", "finished"]
    assert {line["command"] for line in found} == {"fit"}
    assert found[1]["n"] == 1
    assert found[0]["config"] == config_digest(Config())


def test_on_a_terminal_there_is_a_bar_and_plain_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "120")
    with RunLog(tmp_path, "fit", Config()) as log, log.progress("fitting", total=3) as progress:
        progress.update(2, "loss 0.5")
        log.logger.info("in between")
    shown = terminal.getvalue()
    assert "fitting" in shown
    assert "2/3" in shown
    assert "loss 0.5" in shown
    assert "in between" in shown
    assert '{"' not in shown


def test_a_failure_is_logged_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError, match="no"), RunLog(tmp_path, "fit", Config()):
        raise RuntimeError("no")
    last = lines(capsys)[-1]
    assert (last["event"], last["error"]) == ("failed", "RuntimeError: no")


def test_metrics_go_to_a_file_by_command_and_series(tmp_path: Path) -> None:
    with RunLog(tmp_path, "teachers", Config()) as log:
        log.metrics(step=0, loss=1.0)
        log.metrics(step=0, series="boolq", loss=2.0)
        log.metrics(step=1, series="boolq", loss=3.0)
    assert [r["loss"] for r in read_metrics(tmp_path / "metrics" / "teachers.jsonl")] == [1.0]
    assert [r["loss"] for r in read_metrics(tmp_path / "metrics" / "teachers.boolq.jsonl")] == [2.0, 3.0]


def test_progress_without_a_terminal_is_a_line_now_and_then_and_at_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = RunLog(tmp_path, "fit", Config())
    with log.progress("often", total=3, every=0) as progress:
        for done in (1, 2, 3):
            progress.update(done, f"loss {done}")
    with log.progress("seldom", total=3, every=1000) as progress:
        for done in (1, 2, 3):
            progress.update(done)
    found = [line for line in lines(capsys) if line["event"] == "progress"]
    assert [(line["what"], line["done"], line["total"]) for line in found] == [
        ("often", 1, 3),
        ("often", 2, 3),
        ("often", 3, 3),
        ("seldom", 3, 3),
    ]
    assert found[0]["note"] == "loss 1"
    assert "seconds_left" in found[0]
    assert "seconds_left" not in found[2]


def test_an_artefact_is_recorded_with_what_made_it(tmp_path: Path) -> None:
    (tmp_path / "generator").mkdir()
    (tmp_path / "report.html").touch()
    with RunLog(tmp_path, "fit", Config(steps=5)) as log:
        log.record_artefact(tmp_path / "generator", base_revision="r1", data_digest="d1", digest="x")
        log.record_artefact(tmp_path / "report.html", kind="report", seconds=2.5)
    manifest = read_manifest(tmp_path)
    made = manifest["generator"]
    assert (made.kind, made.command, made.config) == ("generator", "fit", {"workdir": "runs", "steps": 5})
    assert made.config_digest == config_digest(Config(steps=5))
    assert (made.base_revision, made.data_digest, made.details) == ("r1", "d1", {"digest": "x"})
    assert (made.code_version, made.git_commit) == (code_version(), git_commit())
    assert made.seconds >= 0
    assert (manifest["report.html"].kind, manifest["report.html"].seconds) == ("report", 2.5)


def test_what_is_not_there_cannot_be_recorded(tmp_path: Path) -> None:
    with (
        RunLog(tmp_path, "fit", Config()) as log,
        pytest.raises(FileNotFoundError, match="before it is written"),
    ):
        log.record_artefact(tmp_path / "nothing")


def test_the_commit_is_that_of_the_clone() -> None:
    root = Path(__file__).resolve().parents[3]
    head = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    expected = head.stdout.strip() if head.returncode == 0 else None
    found = git_commit()
    assert (found and found.removesuffix("+changes")) == expected
