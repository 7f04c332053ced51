from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llgbm.checkpoint import load_generator
from llgbm.config import GeneratorConfig
from llgbm.errors import ConfigError
from llgbm.training import TrainingConfig
from tests.small_generator import calibrate_artefact
from training.recipe import amortise, cores, fit
from training.recipe.conditions import ConditionConfig
from training.recipe.progress_check import CheckConfig
from training.recipe.rounds import RoundConfig
from training.recipe.sampler import SamplerConfig
from training.runs.metrics import read_metrics
from training.runs.results import read_result

IDS = ("first", "next", "upper")
ROWS = SamplerConfig(groups=1, tokens_per_group=2000, context_fraction=0, shared_fraction=0)


@pytest.fixture
def config(tmp_path: Path, tasks_folder: Path, tiny_base_path: Path, tiny_encoder_path: Path) -> fit.Config:
    """A fit of four steps on three tasks, and a round."""
    trunk = TrainingConfig(steps=20, learning_rate=1e-2, shared_rate=0, warmup_steps=2, checkpoint_seconds=-1.0)
    return fit.Config(
        workdir=tmp_path / "fit", tasks=tasks_folder, task_ids=IDS, synthetic_tasks=2,
        base=str(tiny_base_path), text_encoder=str(tiny_encoder_path),
        generator=GeneratorConfig(hidden_size=32, basis_rank=8, num_blocks=1),
        sampler=SamplerConfig(groups=3, synthetic_groups=1, max_row_tokens=400),
        training=TrainingConfig(steps=4, warmup_steps=1, learning_rate=1e-2, checkpoint_seconds=-1.0),
        check=CheckConfig(every=0),
        rounds=1, round=RoundConfig(
            cores.CoreTraining(steps=8, learning_rate=3e-2, enough=0, sampler=ROWS, side_by_side=1),
            amortise.TrunkTraining(
                synthetic_tasks=2, synthetic_groups=1, groups=6, training=trunk,
                conditions=ConditionConfig(example_fraction=0, mixed_fraction=0, noise=0),
            ),
        ),
    )  # fmt: skip


def test_one_command_makes_the_steps_and_the_round(config: fit.Config) -> None:
    fit.run(config)
    fitted, made = load_generator(config.fitted), load_generator(config.artefact)
    taught = load_generator(config.workdir / "round_1" / "amortise" / "generator")
    found = read_result(config.workdir / "round_1" / "amortise" / "results" / "amortise.json")
    assert found["end"]["seen_descriptions"] < found["start"]["seen_descriptions"]
    assert found["tasks_with_cores"] == len(IDS)
    assert made.manifest.digest == taught.manifest.digest != fitted.manifest.digest
    assert made.manifest.tasks == taught.manifest.tasks
    said = made.manifest.made_by
    assert said["command"].startswith("python -m training fit ")
    assert [one["end"] for one in said["rounds"]] == [found["end"]]
    assert " rounds=1 round.cores.steps=8 " in said["command"]


def test_a_round_that_was_stopped_goes_on_to_the_same_artefact(
    config: fit.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit.run(config)
    other = replace(config, workdir=config.workdir.with_name("other"))
    write_cores, seen = cores.write_cores, []

    def stopping(path: Path, *arguments: Any) -> None:
        seen.append(path.stem)
        if len(seen) == 2:
            raise KeyboardInterrupt
        write_cores(path, *arguments)

    monkeypatch.setattr(cores, "write_cores", stopping)
    with pytest.raises(KeyboardInterrupt):
        fit.run(other)
    assert not other.artefact.exists()
    fit.run(other)
    assert seen == [IDS[0], IDS[1], *IDS[1:]]  # the first task's were not made twice
    assert load_generator(other.artefact).manifest.digest == load_generator(config.artefact).manifest.digest


def test_a_second_round_goes_on_from_the_first(config: fit.Config) -> None:
    fit.run(config)
    first = load_generator(config.artefact).manifest
    fit.run(replace(config, rounds=2))
    second = load_generator(config.workdir / "round_2" / "amortise" / "generator").manifest
    assert second.made_by["started_from"]["digest"] == first.digest
    made = load_generator(config.artefact).manifest
    assert made.digest == second.digest
    assert made.made_by["rounds"][0] == first.made_by["rounds"][0]
    assert len(made.made_by["rounds"]) == 2


def test_a_longer_fit_sets_the_round_of_the_shorter_one_aside(config: fit.Config) -> None:
    fit.run(config)
    short = load_generator(config.artefact).manifest
    longer = replace(config, training=replace(config.training, steps=6))
    for _ in range(2):  # the second time nothing is set aside
        fit.run(longer)
        assert sorted(path.name for path in config.workdir.glob("round_*")) == ["round_1", "round_1.1"]
    aside = load_generator(config.workdir / "round_1.1" / "amortise" / "generator").manifest
    made = load_generator(config.artefact).manifest
    assert aside.digest == short.digest != made.digest
    fitted = load_generator(config.fitted).manifest
    assert cores.generators_of(config.workdir / "round_1" / "cores") == {fitted.digest}
    assert made.made_by["steps"] == 6


def test_a_finished_fit_leaves_its_artefact_calibrated(config: fit.Config) -> None:
    fit.run(config)
    calibrated = calibrate_artefact(config.artefact)
    fit.run(config)
    assert load_generator(config.artefact).manifest == calibrated
    fit.run(replace(config, rounds=2))
    assert load_generator(config.artefact).manifest.context_choice is None  # another generator


def test_the_first_round_starts_from_the_cores_that_tasks_have_come_to(config: fit.Config) -> None:
    training = replace(config.training, steps=12, task_rate=4)
    plain = replace(config, training=training, workdir=config.workdir.with_name("plain"))
    own = replace(config, training=training, task_cores_from=2, rounds=2)
    fit.run(plain)
    fit.run(own)
    fitted = load_generator(own.fitted)
    starts = cores.load_cores(own.task_cores, fitted, IDS)
    assert set(starts) == set(IDS)

    def before(workdir: Path) -> float:
        lines = read_metrics(workdir / "round_1" / "cores" / "metrics" / "cores.jsonl")
        return sum(float(line["loss_before"]) for line in lines)

    assert before(own.workdir) < before(plain.workdir)
    found = cores.load_cores(own.workdir / "round_1" / "cores", fitted, IDS)
    assert all(float((found[task].q - starts[task].q).norm()) > 0 for task in IDS)
    fit.run(own)  # nothing is made again
    own.task_cores.joinpath("first.safetensors").unlink()
    assert own.tasks is not None
    with pytest.raises(ConfigError, match="cores of 2 of 3 tasks"):
        cores.run(cores.Config(workdir=own.workdir / "x", checkpoint=own.fitted, tasks=own.tasks, task_ids=IDS,
                               base=own.base, start=own.task_cores))  # fmt: skip


@pytest.mark.parametrize(("first", "rounds"), [(-1, 1), (2, 0)])
def test_cores_of_tasks_need_a_step_and_rounds(config: fit.Config, first: int, rounds: int) -> None:
    with pytest.raises(ConfigError, match="task_cores_from"):
        replace(config, task_cores_from=first, rounds=rounds)
