import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from llgbm.ablations import AblationConfig
from llgbm.adapter_index import load_index, save_index
from llgbm.config import GeneratorConfig
from llgbm.errors import ConfigError
from llgbm.training import TrainingConfig
from training import evaluate, fit, match, report, report_sections, study
from training.__main__ import COMMANDS
from training.conditions import TEXTS_FILE
from training.config import load_config
from training.metrics_file import read_metrics
from training.probe_config import ProbeConfig
from training.progress_check import CheckConfig
from training.report_page import Picture, Table
from training.results import read_result
from training.sampler import SamplerConfig


@pytest.fixture
def config(tmp_path: Path, tasks_folder: Path, tiny_base_path: Path, tiny_encoder_path: Path) -> study.Config:
    return study.Config(
        arms={"all": (), "two": ("num_tasks=2", "sampler.noise=0")},
        workdir=tmp_path / "study",
        seeds=(0, 1),
        fit=fit.Config(
            tasks=tasks_folder, base=str(tiny_base_path), text_encoder=str(tiny_encoder_path),
            generator=GeneratorConfig(basis_rank=8, hidden_size=16, num_blocks=1), sampler=SamplerConfig(groups=2),
            training=TrainingConfig(steps=2, warmup_steps=1), check=CheckConfig(every=0),
        ),
        evaluate=evaluate.Config(
            tasks=tasks_folder, task_ids=("upper", "next"), heldout=None, base=str(tiny_base_path), num_rows=2,
            methods=("generated", "teacher"),
        ),
    )  # fmt: skip


def test_every_arm_is_fitted_with_its_changes_and_evaluated(config: study.Config) -> None:
    study.run(config)
    found = read_result(config.workdir / "results" / "study.json")
    assert found["changes"] == {"all": [], "two": ["num_tasks=2", "sampler.noise=0"]}
    assert [(arm["kind"], arm["seed"]) for arm in found["arms"]] == [("all", 0), ("all", 1), ("two", 0), ("two", 1)]
    assert list(found["arms"][0]["metrics"]) == [  # no teacher was there
        "unseen descriptions: generated", "unseen descriptions, log-likelihood: generated", "seconds",
    ]  # fmt: skip
    assert found["summary"]["two"]["unseen descriptions: generated"]["count"] == 2
    for seed in (0, 1):
        manifest = json.loads((config.workdir / f"two-s{seed}" / "generator" / "manifest.json").read_text())
        assert len(manifest["tasks"]) == 2
        assert manifest["made_by"]["seed"] == seed
    assert [path.parent.name for path in config.workdir.rglob(TEXTS_FILE)] == ["study"]  # texts are encoded once


def test_the_seconds_of_a_fit_with_checks_are_those_of_its_steps(config: study.Config) -> None:
    checked = replace(config.fit, check=CheckConfig(every=1, num_tasks=2, num_rows=1))
    study.run(replace(config, only=("all",), seeds=(0,), fit=checked))
    [arm] = read_result(config.workdir / "results" / "study.json")["arms"]
    lines = read_metrics(config.workdir / "all-s0" / "metrics" / "fit.jsonl")
    steps = [line for line in lines if "check_right_accuracy" not in line]
    assert len(steps) == 2 < len(lines)
    assert arm["metrics"]["seconds"] == pytest.approx(sum(line["seconds"] for line in steps))


@pytest.fixture
def matching(config: study.Config, workdir: Path) -> study.Config:
    """A fit and two matches that start at the same teachers."""
    return replace(
        config, arms={"task-loss": ("teachers=" + str(workdir), "start_at_teachers=true")},
        matches={"weight": ("loss=weight",), "delta": ("loss=delta", "training.steps=3")}, seeds=(0,),
        fit=replace(config.fit, generator=GeneratorConfig(basis_rank=32, hidden_size=16, num_blocks=1)),
        match=match.Config(
            workdir=workdir, folder=config.fit.tasks, base=config.fit.base, text_encoder=config.fit.text_encoder,
            probes=ProbeConfig(count=2), groups=2, generator_start="teachers", training=config.fit.training,
            generator=GeneratorConfig(basis_rank=32, hidden_size=16, num_blocks=1),
        ),
    )  # fmt: skip


def test_arms_that_match_teachers_stand_beside_fits(matching: study.Config, workdir: Path) -> None:
    study.run(matching)
    found = read_result(matching.workdir / "results" / "study.json")
    assert found["changes"]["delta"] == ["loss=delta", "training.steps=3"]
    assert [arm["kind"] for arm in found["arms"]] == ["task-loss", "weight", "delta"]
    for arm in found["arms"]:
        assert list(arm["metrics"]) == [
            "unseen descriptions: generated", "unseen descriptions, log-likelihood: generated",
            "delta cosine, training tasks", "delta cosine, held-out tasks", "seconds",
        ]  # fmt: skip
        assert arm["metrics"]["seconds"] > 0
    matched = read_result(workdir / "results" / "match-delta-s0.json")["metrics"]
    assert found["arms"][2]["metrics"]["delta cosine, training tasks"] == pytest.approx(
        matched["train_cosine"], abs=1e-3
    )
    assert found["summary"]["task-loss"]["delta cosine, training tasks"]["mean"] > 0.1  # the mean teacher's


def test_what_is_finished_is_kept_until_its_settings_change(
    config: study.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    study.run(config)
    fitted: list[Path] = []
    monkeypatch.setattr(fit, "run", lambda arm, texts: fitted.append(arm.workdir))
    study.run(config)
    assert fitted == []
    study.run(replace(config, evaluate=replace(config.evaluate, num_rows=3)))
    assert fitted == [config.workdir / f"{arm}-s{seed}" for seed in (0, 1) for arm in ("all", "two")]


def test_what_is_finished_is_made_again_of_other_tasks(
    config: study.Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(config.fit.tasks, tmp_path / "tasks")
    config = replace(config, only=("all",), seeds=(0,), fit=replace(config.fit, tasks=folder))
    study.run(config)
    fitted: list[Path] = []
    monkeypatch.setattr(fit, "run", lambda arm, texts: fitted.append(arm.workdir))
    path = sorted(folder.glob("*.json"))[0]
    task = json.loads(path.read_text())
    path.write_text(json.dumps(task | {"train": task["train"][:-1]}))
    study.run(config)
    assert fitted == [config.workdir / "all-s0"]


def test_an_arm_that_matches_other_teachers_is_run_again(
    matching: study.Config, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(matching, only=("weight",))
    study.run(config)
    real, matched = match.run, list[str]()

    def run(arm: match.Config) -> None:
        matched.append(arm.name)
        real(arm)

    monkeypatch.setattr(match, "run", run)
    study.run(config)
    assert matched == []
    save_index(workdir, load_index(workdir)[:-1])
    study.run(config)
    assert matched == ["weight-s0"]


def test_fewer_tasks_are_among_more(config: study.Config) -> None:
    two, four, every = (
        {task.task_id for task in fit.training_tasks(replace(config.fit, num_tasks=n))[0]} for n in (2, 4, 0)
    )
    assert two < four < every
    assert len(two) == 2
    assert len(four) == 4
    with pytest.raises(ConfigError, match="num_tasks is 99, and there are 6 tasks"):
        fit.training_tasks(replace(config.fit, num_tasks=99))


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        ({"a/b": ()}, "names a folder"),
        ({"a": ("steps=3",)}, r"arms\.a\.steps: unknown key"),
        ({"a": ("num_tasks",)}, "expected name=value"),
    ],
)
def test_arms_that_cannot_be_are_refused_before_the_first_fit(
    config: study.Config, arms: dict[str, tuple[str, ...]], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(config, arms=arms)


def test_only_some_arms_can_be_asked_for(config: study.Config) -> None:
    study.run(replace(config, only=("two",), seeds=(0,)))
    found = read_result(config.workdir / "results" / "study.json")
    assert list(found["changes"]) == list(found["summary"]) == ["two"]
    assert not (config.workdir / "all-s0").exists()
    with pytest.raises(ConfigError, match="only: 'three' is none of all, two"):
        replace(config, only=("three",))


def test_a_study_without_arms_is_refused(config: study.Config) -> None:
    with pytest.raises(ConfigError, match="kinds needs at least one value"):
        study.run(replace(config, arms={}))


def test_a_change_that_no_match_has_is_refused_before_the_first_fit(config: study.Config) -> None:
    with pytest.raises(ConfigError, match=r"matches\.a\.distillation: unknown key"):
        replace(config, matches={"a": ("distillation=0",)})


@pytest.mark.parametrize("file", ["study.yaml", "curve.yaml"])
def test_the_shipped_studies_are_of_equal_cost_but_for_what_an_arm_changes(file: str) -> None:
    config = load_config(
        study.Config, [f"training/configs/{file}"], section="study", other_sections={"report": lambda: report.Config}
    )
    arms = [study.arm_config(config, name, 0) for name in config.arms]
    assert len({arm.training.steps for arm in arms}) == 1
    if file == "curve.yaml":
        assert {cast(fit.Config, arm).num_tasks for arm in arms} == {25, 50, 100, 208}


def test_the_study_of_losses_gives_fits_and_matches_the_same_start_and_optimiser() -> None:
    others = {command.name: command.config_class for command in COMMANDS if command.name != "study"}
    config = load_config(study.Config, ["training/configs/losses.yaml"], section="study", other_sections=others)
    assert len(AblationConfig((*config.arms, *config.matches)).kinds) == 8
    assert config.fit.start_at_teachers
    assert config.match.generator_start == "teachers"
    assert config.fit.teachers == config.match.workdir
    assert config.fit.sampler.groups == config.match.groups
    for name in ("probes", "base_storage", "generator", "training"):
        assert getattr(config.fit, name) == getattr(config.match, name)
    assert set(config.evaluate.task_ids) == set(config.fit.task_ids)


METRICS = {
    "heldout kinds: generated": 0.2, "heldout kinds, log-likelihood: generated": -3.5, "heldout kinds: teacher": 0.5,
    "heldout kinds, log-likelihood: teacher": -1.0, "delta cosine, training tasks": 0.9, "seconds": 12.0,
}  # fmt: skip


def shown(changes: dict[str, list[str]]) -> list[Picture | Table]:
    summary = {
        arm: {name: {"mean": value, "deviation": None, "count": 1} for name, value in METRICS.items()}
        for arm in changes
    }
    section = report_sections.study({"command": "c", "steps": 3, "summary": summary, "changes": changes})
    assert section.commands == ("c",)
    return list(section.content)


def test_a_report_shows_the_arms_beside_each_other() -> None:
    picture, table, changes = shown({"all": [], "two": ["num_tasks=2"]})
    assert isinstance(picture, Picture)
    assert picture.name == "study-heldout-kinds-by-arm"
    assert isinstance(table, Table)
    assert isinstance(changes, Table)
    assert table.rows[0] == ("heldout kinds: generated", "0.200", "0.200")
    assert changes.rows == [("all", "none"), ("two", "num_tasks=2")]


def test_a_report_shows_arms_that_differ_in_one_number_as_curves() -> None:
    content = shown({"many": ["num_tasks=208"], "few": ["num_tasks=25"]})
    pictures = {item.name: item.drawing.svg for item in content if isinstance(item, Picture)}
    assert list(pictures) == ["study-heldout-kinds", "study-heldout-kinds-log-likelihood"]
    assert "num tasks" in pictures["study-heldout-kinds"]
    assert "nats a token" in pictures["study-heldout-kinds-log-likelihood"]


@pytest.mark.parametrize(
    "changes",
    [
        {"one": ["num_tasks=2"]},
        {"a": ["num_tasks=2"], "b": ["distillation=0"]},
        {"a": ["num_tasks=2", "noise=1"], "b": ["num_tasks=3", "noise=1"]},
        {"a": ["teacher=x"], "b": ["teacher=y"]},
    ],
)
def test_other_arms_are_no_curve(changes: dict[str, list[str]]) -> None:
    assert [item.name for item in shown(changes) if isinstance(item, Picture)] == ["study-heldout-kinds-by-arm"]
