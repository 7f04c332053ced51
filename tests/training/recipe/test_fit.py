import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llgbm.adapters.peft_io import load_peft, save_peft
from llgbm.base import Base
from llgbm.checkpoint import load_generator
from llgbm.config import GeneratorConfig, LoRASpec, default_lora, lora_spec, model_spec
from llgbm.errors import CacheMismatchError, CheckpointError, ConfigError, TaskFormatError
from llgbm.generator import create_generator
from llgbm.packed.batch import TrainingBatch
from llgbm.prompting import AdapterMaker, AdapterRequest
from llgbm.training import TrainingConfig
from tests.small_generator import calibrate_artefact
from training.adapters.delta_store import ProbeConfig
from training.adapters.teacher_folder import adapter_folder
from training.phases import deltas
from training.recipe import fit
from training.recipe.progress_check import CheckConfig
from training.recipe.sampler import SamplerConfig, TaskSampler
from training.runs.artefacts import read_manifest
from training.runs.metrics import read_metrics
from training.tasks.format import load_tasks

IDS = ("first", "next", "upper")


@pytest.fixture
def config(tmp_path: Path, tasks_folder: Path, tiny_base_path: Path, tiny_encoder_path: Path) -> fit.Config:
    """Three tasks, ten steps, a state after each."""
    return fit.Config(
        workdir=tmp_path / "fit",
        tasks=tasks_folder,
        task_ids=IDS,
        base=str(tiny_base_path),
        text_encoder=str(tiny_encoder_path),
        generator=GeneratorConfig(hidden_size=32, basis_rank=8, num_blocks=1),
        sampler=SamplerConfig(groups=3, tokens_per_group=220, warm_start_steps=2),
        training=TrainingConfig(steps=10, learning_rate=1e-2, warmup_steps=2, checkpoint_seconds=-1.0),
        check=CheckConfig(every=4, num_tasks=3, num_rows=2),
    )


def digest_of(config: fit.Config) -> str:
    return load_generator(config.workdir / "generator").manifest.digest


class Killed(BaseException):
    """Ends a run where it stands."""


def kill_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    draw = TaskSampler.__call__

    def batches(self: TaskSampler, current: int) -> TrainingBatch:
        if current == step:
            raise Killed
        return draw(self, current)

    monkeypatch.setattr(TaskSampler, "__call__", batches)


def killed_run(config: fit.Config, step: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        kill_at(patch, step)
        with pytest.raises(Killed):
            fit.run(config)


def test_a_fit_writes_an_artefact_that_makes_adapters(config: fit.Config, tiny_base: Base) -> None:
    fit.run(config)
    checkpoint = load_generator(config.workdir / "generator")
    manifest = checkpoint.manifest
    assert config.tasks is not None
    tasks = load_tasks(config.tasks, IDS)
    assert [t.task_id for t in manifest.tasks] == list(IDS)
    assert [t.descriptions for t in manifest.tasks] == [t.seen_descriptions for t in tasks]
    assert (manifest.base_id, manifest.base_revision) == (tiny_base.spec.base_id, tiny_base.revision)
    assert (manifest.encoder_id, manifest.lora) == (config.text_encoder, lora_spec("tiny"))
    assert set(manifest.made_by) == {"command", "seed", "steps", "last_run_seconds"}
    maker = AdapterMaker(checkpoint, checkpoint.text_encoder())
    (made,) = maker.make([AdapterRequest(tasks[2].seen_descriptions[:1])])
    assert made.nearest[0][0] == "upper"
    assert max(made.weights.product_norms().values()) > 0


def test_a_fit_records_its_steps_its_checks_and_its_artefact(config: fit.Config, tiny_base: Base) -> None:
    fit.run(config)
    lines = read_metrics(config.workdir / "metrics" / "fit.jsonl")
    assert [line["step"] for line in lines if "loss" in line] == list(range(10))
    assert [line["step"] for line in lines if "check_right_accuracy" in line] == [3, 7, 9]
    assert all({"lr", "grad_norm", "sft", "rows", "tokens"} <= line.keys() for line in lines if "loss" in line)
    artefact = read_manifest(config.workdir)["generator"]
    assert artefact.command == "fit"
    assert artefact.base_revision == tiny_base.revision
    assert artefact.details["digest"] == digest_of(config)


def test_a_killed_fit_goes_on_to_the_same_artefact(config: fit.Config) -> None:
    fit.run(config)
    other = replace(config, workdir=config.workdir.with_name("other"))
    killed_run(other, 1)
    killed_run(other, 6)
    assert not (other.workdir / "generator").exists()
    fit.run(other)
    assert digest_of(other) == digest_of(config)
    lines = read_metrics(other.workdir / "metrics" / "fit.jsonl")
    assert [line["step"] for line in lines if "loss" in line] == list(range(10))


def test_a_finished_fit_writes_its_artefact_again_without_training(config: fit.Config) -> None:
    fit.run(config)
    digest = digest_of(config)
    (config.workdir / "generator" / "manifest.json").unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TaskSampler, "__call__", None)
        fit.run(config)
    assert digest_of(config) == digest


def test_a_finished_fit_leaves_its_artefact_calibrated(config: fit.Config) -> None:
    fit.run(config)
    made = read_manifest(config.workdir)["generator"]
    calibrated = calibrate_artefact(config.artefact)
    fit.run(config)
    assert load_generator(config.artefact).manifest == calibrated
    assert read_manifest(config.workdir)["generator"] == made
    fit.run(replace(config, training=replace(config.training, steps=12)))
    assert load_generator(config.artefact).manifest.context_choice is None  # another generator


def test_a_fit_may_go_on_from_another_generator(config: fit.Config) -> None:
    fit.run(replace(config, task_ids=("first", "next")))
    first = load_generator(config.workdir / "generator").manifest
    further = replace(config, workdir=config.workdir.with_name("further"), start=config.workdir / "generator")
    fit.run(replace(further, task_ids=("next", "upper"), training=replace(config.training, steps=1)))
    manifest = load_generator(further.workdir / "generator").manifest
    assert [t.task_id for t in manifest.tasks] == ["next", "upper", "first"]
    assert manifest.made_by["started_from"]["digest"] == first.digest
    lines = [read_metrics(c.workdir / "metrics" / "fit.jsonl") for c in (config, further)]
    assert lines[1][0]["loss"] < 0.8 * lines[0][0]["loss"]


def test_a_fit_that_goes_on_draws_other_batches(config: fit.Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """The start was trained on the batches of the same seed; once more they would teach it nothing new."""
    drawn: list[list[object]] = []
    draw = TaskSampler.__call__

    def batches(self: TaskSampler, step: int) -> TrainingBatch:
        batch = draw(self, step)
        drawn.append([[row.answer for row in group.rows] for group in batch])
        return batch

    monkeypatch.setattr(TaskSampler, "__call__", batches)
    short = replace(config, sampler=replace(config.sampler, warm_start_steps=0), check=CheckConfig(every=0))
    short = replace(short, training=replace(config.training, steps=3))
    fit.run(short)
    fit.run(replace(short, workdir=config.workdir.with_name("again")))
    assert drawn[3:] == drawn[:3]
    fit.run(replace(short, workdir=config.workdir.with_name("further"), start=config.workdir / "generator"))
    assert all(new != old for new, old in zip(drawn[6:], drawn[:3], strict=True))


def test_a_generator_of_another_size_is_no_start(config: fit.Config) -> None:
    fit.run(config)
    other = replace(config, workdir=config.workdir.with_name("other"), start=config.workdir / "generator")
    with pytest.raises(ConfigError, match="has another base, LoRASpec or size than this fit"):
        fit.run(replace(other, generator=replace(config.generator, hidden_size=48)))


def test_procedural_tasks_are_trained_on_but_for_the_families_kept_back(config: fit.Config) -> None:
    sampler = replace(config.sampler, synthetic_groups=2, max_row_tokens=400)
    config = replace(config, synthetic_tasks=5, hidden_families=("votes", "letters"), sampler=sampler)
    fit.run(config)
    manifest = load_generator(config.workdir / "generator").manifest
    categories = [t.category for t in manifest.tasks]
    assert sum(c.startswith("synthetic_") for c in categories) == 5
    assert not {"synthetic_votes", "synthetic_letters"} & set(categories)
    lines = read_metrics(config.workdir / "metrics" / "fit.jsonl")
    checks = [line for line in lines if "check_right_accuracy" in line]
    assert all({"hidden_right_accuracy", "hidden_wrong_log_likelihood"} <= line.keys() for line in checks)
    with pytest.raises(ConfigError, match="no family of synthetic tasks"):
        fit.run(replace(config, hidden_families=("vote",)))


def test_another_seed_gives_another_generator(config: fit.Config) -> None:
    fit.run(config)
    other = replace(config, workdir=config.workdir.with_name("other"), training=replace(config.training, seed=1))
    fit.run(other)
    assert digest_of(other) != digest_of(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: replace(c, task_ids=("first", "next")), r"tasks_digest \w+ instead of \w+"),
        (lambda c: replace(c, sampler=replace(c.sampler, noise=0.3)), r"sampler\.noise 0\.1 instead of 0\.3"),
        (lambda c: replace(c, label_smoothing=0.0), r"label_smoothing 0\.05 instead of 0\.0"),
        (
            lambda c: replace(c, training=replace(c.training, learning_rate=1.0)),
            r"training\.learning_rate \S+ instead of 1\.0",
        ),
        (lambda c: replace(c, generator=replace(c.generator, num_blocks=2)), r"generator\.num_blocks 1 instead of 2"),
        (
            lambda c: replace(c, base_storage="bfloat16", distillation=0.1),
            "base_storage float32 instead of bfloat16, .*",
        ),
    ],
)
def test_a_workdir_of_other_settings_is_refused(
    config: fit.Config, change: Callable[[fit.Config], fit.Config], message: str
) -> None:
    killed_run(config, 2)
    state = (config.workdir / "state.pt").read_bytes()
    with pytest.raises(ConfigError, match=rf"other settings \({message}\); use them again or another workdir"):
        fit.run(change(config))
    assert (config.workdir / "state.pt").read_bytes() == state


def test_a_fit_may_be_made_longer_and_checked_otherwise_but_not_shorter(config: fit.Config) -> None:
    fit.run(config)
    training = replace(config.training, steps=12, checkpoint_seconds=60.0)
    fit.run(replace(config, training=training, check=CheckConfig(every=0)))
    lines = read_metrics(config.workdir / "metrics" / "fit.jsonl")
    assert [line["step"] for line in lines if "loss" in line] == list(range(12))
    with pytest.raises(CheckpointError, match="beyond the 10 asked for"):
        fit.run(config)


def test_a_workdir_without_a_state_is_free_for_other_settings(config: fit.Config) -> None:
    killed_run(config, 0)
    assert (config.workdir / "settings.json").exists()
    fit.run(replace(config, label_smoothing=0.0))
    assert json.loads((config.workdir / "settings.json").read_text())["label_smoothing"] == 0.0


def test_a_state_of_unknown_settings_is_refused(config: fit.Config) -> None:
    killed_run(config, 5)
    (config.workdir / "settings.json").unlink()
    with pytest.raises(ConfigError, match="no record of its settings; use another workdir"):
        fit.run(config)


def test_the_warm_start_leaves_the_prompted_part_alone(config: fit.Config, tiny_base: Base) -> None:
    """With warm-start steps only, what comes out is one shared adapter: the multi-task LoRA."""
    fit.run(replace(config, sampler=replace(config.sampler, warm_start_steps=10)))
    state: dict[str, Any] = torch.load(config.workdir / "state.pt", weights_only=True)["model"]
    fresh = create_generator(tiny_base.spec, lora_spec("tiny"), config.generator, seed=0).state_dict()
    changed = {name.partition(".")[0] for name, t in fresh.items() if not torch.equal(t, state[f"0.{name}"])}
    assert changed == {"a0", "b0", "q0", "p0"}


def test_more_wordings_are_trained_on_and_listed_but_not_indexed(config: fit.Config, tmp_path: Path) -> None:
    wordings = tmp_path / "wordings.json"
    wordings.write_text(json.dumps({IDS[0]: ["said in another way"]}), encoding="utf-8")
    plain = config.training_set().own
    config = replace(config, wordings=wordings, training=replace(config.training, steps=2))
    fit.run(config)
    made = load_generator(config.workdir / "generator")
    listed = {task.task_id: task.descriptions for task in made.manifest.tasks}
    assert listed == {t.task_id: t.seen_descriptions + ("said in another way",) * (t.task_id == IDS[0]) for t in plain}
    assert len(made.prompt_index.task) == sum(len(task.seen_descriptions) for task in plain)


def test_an_unknown_task_is_refused_before_anything_is_written(config: fit.Config) -> None:
    with pytest.raises(TaskFormatError, match="no task 'uper'"):
        fit.run(replace(config, task_ids=("uper",)))
    assert not config.workdir.exists()


def test_the_lora_is_the_presets_where_there_is_one(tiny_base: Base) -> None:
    assert default_lora(tiny_base.spec) == lora_spec("tiny")
    other = replace(model_spec("tiny"), name="someone/else", num_layers=1)
    assert default_lora(other) == LoRASpec.for_model(other, rank=8, alpha=16.0)


def test_the_delta_loss_brings_adapters_nearer_to_the_teachers(config: fit.Config, workdir: Path) -> None:
    """`workdir` has teachers of these tasks."""
    config = replace(
        config, teachers=workdir, matching=1.0, probes=ProbeConfig(count=3, layers=2),
        generator=replace(config.generator, basis_rank=32), check=CheckConfig(every=0),
        sampler=replace(config.sampler, warm_start_steps=0, shared_fraction=0.0),
        training=replace(config.training, steps=30),
    )  # fmt: skip
    with pytest.raises(CacheMismatchError, match="no delta of first_000; run the command deltas"):
        fit.run(config)
    measured = deltas.Config(workdir=workdir, folder=config.tasks, base=config.base, probes=config.probes)
    deltas.run(measured)
    other = adapter_folder(workdir, "first", 0)
    kept = shutil.copytree(other, workdir.parent / "kept")
    save_peft(load_peft(adapter_folder(workdir, "next", 0))[0], other, base_id=load_peft(other)[1])
    with pytest.raises(CacheMismatchError, match="first_000"):  # the delta of another teacher of this name
        fit.run(config)
    shutil.rmtree(other)
    kept.rename(other)
    fit.run(config)
    distance = [line["delta"] for line in read_metrics(config.workdir / "metrics" / "fit.jsonl")]
    assert 0 < sum(distance[-5:]) < 0.8 * sum(distance[:5])


@pytest.mark.parametrize("settings", [{"context_teacher": "adapter"}, {"matching": 1.0}])
def test_what_needs_teachers_is_refused_without_a_folder_of_them(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="go with teachers"):
        fit.Config(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "go with teachers"),
        ({"matching": -1.0}, "must not be negative"),
        ({"state_matching": -1.0}, "must not be negative"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        fit.Config(teachers=tmp_path, **settings)
