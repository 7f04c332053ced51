from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llgbm.errors import ConfigError, TaskFormatError
from training.adapters.delta_store import ProbeConfig
from training.phases import deltas
from training.report import quality_sections, report, sections
from training.report.page import Picture, Table
from training.runs.artefacts import read_manifest


@pytest.fixture
def measured(workdir: Path, tasks_folder: Path, tiny_base_path: Path) -> Path:
    deltas.run(
        deltas.Config(workdir=workdir, folder=tasks_folder, base=str(tiny_base_path), probes=ProbeConfig(count=2))
    )
    return workdir


def test_a_report_shows_what_is_there_and_leaves_out_the_rest(
    measured: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report.run(report.Config(workdir=measured))
    html = (measured / "report" / "report.html").read_text()
    assert capsys.readouterr().out.strip() == str(measured / "report" / "report.html")
    assert "<h2>Deltas: deltas</h2>" in html
    assert "<h2>Loss: teachers</h2>" in html
    assert "<h2>Artefacts</h2>" in html
    assert "Ablation" not in html
    assert {p.name for p in (measured / "report").glob("*.png")} == {
        "deltas-map-deltas.png", "deltas-map-flattened.png", "deltas-map-products.png", "deltas-norms.png",
        "loss-teachers.png",
    }  # fmt: skip


def test_every_section_names_the_command_that_made_it(measured: Path) -> None:
    found = {section.title: section.commands for section in report.sections(report.Config(workdir=measured))}
    assert found["Deltas: deltas"][0].startswith(f"python -m training deltas workdir={measured} ")
    [line] = found["Loss: teachers"]
    assert line.startswith("python -m training teachers workdir=")
    assert "lora_rank=4" in line
    assert all(commands for commands in found.values())


def test_a_record_of_another_version_still_names_its_command(measured: Path) -> None:
    artefact = next(iter(read_manifest(measured).values()))
    line = report.command_line(replace(artefact, config={**artefact.config, "gone": 1}))
    assert line == f"python -m training {artefact.command}  # with settings that this version does not have"


def test_nothing_to_report_is_an_error_and_so_is_a_missing_table(tmp_path: Path, measured: Path) -> None:
    with pytest.raises(ConfigError, match="has no results and no metrics"):
        report.run(report.Config(workdir=tmp_path))
    with pytest.raises(TaskFormatError, match=r"nowhere\.json"):
        report.run(report.Config(workdir=measured, quality=tmp_path / "nowhere.json"))


def ablation(deviation: float | None) -> dict[str, Any]:
    spread = {"mean": 0.5, "deviation": deviation, "count": 2}
    names = ("train_cosine", "heldout_cosine", "train_weight_error", "base_forwards", "seconds")
    return {
        "command": "c", "steps": 3, "groups": 2,
        "summary": {kind: dict.fromkeys(names, spread) for kind in ("weight", "delta")},
    }  # fmt: skip


@pytest.mark.parametrize("deviation", [0.1, None])
def test_an_ablation_has_error_bars_where_there_are_seeds(deviation: float | None) -> None:
    section = sections.ablation(ablation(deviation))
    table = next(item for item in section.content if isinstance(item, Table))
    assert table.rows[0][1] == ("0.500 ± 0.100" if deviation else "0.500")
    assert any(isinstance(item, Picture) for item in section.content)


def test_a_guided_fit_that_never_reached_the_cosine_has_dashes() -> None:
    row = {
        "name": "guided, N = 20", "every": 20, "cosine": 0.4, "train_cosine": 0.5, "base_forwards": 4.0,
        "base_passes": 6.0, "seconds": 2.0, "reached_at": None, "fewer_forwards": 2.0, "fewer_passes": 1.5,
        "cosine_minus_delta_only": -0.1,
        "curve": [{"step": 0, "cosine": 0.0, "base_forwards": 0}],
    }  # fmt: skip
    section = sections.guided({"command": "c", "target_cosine": 0.5, "tolerance": 0.02, "rows": [row]})
    table = next(item for item in section.content if isinstance(item, Table))
    assert list(table.rows[0][-3:]) == [None, None, None]


def test_quality_has_a_table_and_bars_for_each_group_of_tasks() -> None:
    def scored(value: float) -> dict[str, Any]:
        tasks = {"upper": {"accuracy": value, "n": 3}}
        return {"accuracy": value, "interval": [0.0, 1.0], "log_likelihood": -1.0, "tasks": tasks}

    methods = {
        "base": scored(0.1),
        "generated": scored(0.6),
        "teacher": {"accuracy": None, "interval": None, "reason": "x"},
    }
    difference = {"of": "generated", "minus": "base", "mean": 0.5, "interval": [0.0, 1.0], "num_tasks": 1}
    column = {"num_tasks": 1, "methods": methods, "differences": [difference]}
    columns = dict.fromkeys(("unseen_descriptions", "heldout_kinds"), column)
    whole, first, second = quality_sections.quality({"command": "c", "metric": "exact match", "columns": columns})
    assert (first.title, second.title) == ("Quality: unseen descriptions", "Quality: heldout kinds")
    assert isinstance(whole.content[0], Picture)
    table, differences, picture = first.content
    assert isinstance(differences, Table)
    assert differences.rows == [("generated", "base", 0.5, 0.0, 1.0, 1)]
    assert isinstance(table, Table)
    assert table.rows[-1] == ("teacher", None, None, None, None, None)
    assert isinstance(picture, Picture)
    assert picture.caption == "Accuracy by task: base, generated"
