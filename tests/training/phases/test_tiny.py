import re
from pathlib import Path

import pytest

from training.phases import tiny
from training.phases.pipeline import PHASES
from training.runs.results import read_results

SMALLER = {
    r"steps: 60": "steps: 3", r"steps: 160": "steps: 4", r"warm_start_steps: 40": "warm_start_steps: 1",
    r"steps: 100,": "steps: 4,", r"num_pairs: 2": "num_pairs: 1",
    r"num_rows: 10": "num_rows: 2",
    r"num_tasks: 6": "num_tasks: 2", r"every: 80": "every: 4", r"guided_every: \[.*\]": "guided_every: [2]",
    r"groups: 9": "groups: 2", r"kinds: \[.*\]": "kinds: [weight, guided]", r"parallel_steps: 3": "parallel_steps: 0",
    r"fit_steps: 4": "fit_steps: 2",
    r"evaluate_every: \d+": "evaluate_every: 0", r"hidden_size: 128": "hidden_size: 16",
}  # fmt: skip
IN_THIS_PROCESS = tuple(phase for phase in PHASES if phase != "scale")


@pytest.fixture
def smaller_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real plan with few steps."""
    text = tiny.PLAN.read_text()
    for pattern, value in SMALLER.items():
        text, count = re.subn(pattern, value, text)
        assert count, pattern
    (tmp_path / "small.yaml").write_text(text)
    monkeypatch.setattr(tiny, "PLAN", tmp_path / "small.yaml")


@pytest.mark.usefixtures("smaller_plan")
def test_every_phase_runs_and_is_in_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work = tmp_path / "work"
    families = ("letters", "arithmetic")
    tiny.run(tiny.Config(workdir=work, families=families, tasks_per_family=2, phases=IN_THIS_PROCESS))
    out = capsys.readouterr().out
    assert all(f"  {phase} " in out for phase in IN_THIS_PROCESS)
    assert set(read_results(work)) == {
        "deltas", "encoder", "words", "match-guided-10-s0", "ablation", "guided", "composition", "confidence",
        "quality",
    }  # fmt: skip
    html = (work / "report" / "report.html").read_text()
    for title in (
        "Deltas",
        "Matching teachers",
        "Ablation",
        "Delta-guided",
        "Composition",
        "Confidence",
        "Quality",
        "Loss: fit",
    ):
        assert f"<h2>{title}" in html
    assert not list(Path().glob("runs/tiny"))


def test_what_is_there_is_kept(tmp_path: Path) -> None:
    config = tiny.Config(workdir=tmp_path, families=("letters",), tasks_per_family=1)
    tiny.prepare(config)
    stamps = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    assert len(list((tmp_path / "tasks").glob("*.json"))) == 1
    tiny.prepare(config)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()} == stamps


@pytest.mark.slow
def test_the_whole_command_runs_as_it_is(tmp_path: Path) -> None:
    tiny.run(tiny.Config(workdir=tmp_path / "work"))
    found = read_results(tmp_path / "work")
    assert found["scale"]["parallel"]["largest_relative_difference"] < 1e-3
    assert found["match-guided-10-s0"]["metrics"]["train_cosine"] > 0.5
