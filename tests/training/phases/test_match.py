from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llgbm.adapters.index import load_index, save_index
from llgbm.checkpoint import load_generator
from llgbm.config import GeneratorConfig
from llgbm.delta import DeltaMeter
from llgbm.errors import CacheMismatchError
from llgbm.matching.delta_head import DeltaHeadConfig
from llgbm.training import TrainingConfig
from training.adapters.delta_store import ProbeConfig
from training.phases import match
from training.phases.match_setup import load_material
from training.runs.artefacts import read_manifest
from training.runs.log import RunLog
from training.runs.metrics import read_metrics
from training.runs.results import read_result

STEPS = 12


@pytest.fixture
def config(workdir: Path, tasks_folder: Path, tiny_base_path: Path, tiny_encoder_path: Path) -> match.Config:
    return match.Config(
        workdir=workdir, folder=tasks_folder, base=str(tiny_base_path), text_encoder=str(tiny_encoder_path),
        probes=ProbeConfig(count=3, layers=2), groups=3, head_directions=4, evaluate_every=6,
        head=DeltaHeadConfig(sketch_size=4, output_rank=16, correction_size=16),
        generator=GeneratorConfig(basis_rank=16, hidden_size=32, num_blocks=1),
        training=TrainingConfig(steps=STEPS, learning_rate=1e-2, warmup_steps=2, decay_fraction=0.5),
    )  # fmt: skip


def result(config: match.Config) -> dict[str, Any]:
    return read_result(config.workdir / "results" / f"match-{config.title}.json")


@pytest.mark.parametrize(
    ("loss", "forwards"), [("weight", 0), ("delta", 3 * STEPS), ("multitask", 3 * STEPS), ("guided", 3 * 3)]
)
def test_every_loss_brings_the_generator_nearer_to_the_teachers(
    config: match.Config, loss: match.Kind, forwards: int
) -> None:
    config = replace(config, loss=loss, every=5)
    match.run(config)
    found = result(config)
    metrics, curve = found["metrics"], found["curve"]
    assert metrics["base_forwards"] == forwards
    assert metrics["calibration_passes"] == (4 + match.PILOT_PASSES if loss == "guided" else 0)
    assert [point["step"] for point in curve] == [0, 6, STEPS]
    assert curve[0]["heldout_cosine"] == 0  # the fresh generator's adapters change nothing
    assert curve[-1]["heldout_cosine"] == pytest.approx(metrics["heldout_cosine"], abs=1e-5)
    assert curve[-1]["base_forwards"] == forwards
    assert metrics["train_cosine"] > 0.1
    if loss in ("weight", "multitask"):
        assert metrics["train_weight_error"] < 1.0
    assert set(found["train_adapters"]).isdisjoint(found["heldout_adapters"])
    assert {"train_mean_teacher_cosine", "heldout_nearest_teacher_cosine", "seconds", "cpu_seconds"} <= set(metrics)


def test_the_counted_passes_are_those_that_were_run(config: match.Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps between two computed deltas save their passes; none is hidden in a second pass on the same batch."""
    with_gradient: list[int] = []
    real = DeltaMeter.deltas

    def counted(self: DeltaMeter, weights: Any) -> torch.Tensor:
        if torch.is_grad_enabled():
            with_gradient.append(len(weights))
        return real(self, weights)

    monkeypatch.setattr(DeltaMeter, "deltas", counted)
    config = replace(config, loss="guided", every=4)
    match.run(config)
    assert sum(with_gradient) == result(config)["metrics"]["base_forwards"] == 3 * 3


def test_a_stopped_fit_goes_on_to_the_same_result(config: match.Config, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(config, loss="guided", every=5, name="whole")
    match.run(config)
    stopped = replace(config, name="stopped", training=replace(config.training, checkpoint_seconds=0.0))

    class PowerCutError(Exception):
        pass

    def cut(recorder: Any, done: int) -> None:
        if done == 6:
            raise PowerCutError
        real(recorder, done)

    real = match._Recorder.measure
    monkeypatch.setattr(match._Recorder, "measure", cut)
    with pytest.raises(PowerCutError):
        match.run(stopped)
    monkeypatch.undo()
    match.run(stopped)
    whole, resumed = result(config), result(stopped)
    timed = {"seconds", "cpu_seconds", "calibration_seconds"}
    assert {k: v for k, v in resumed["metrics"].items() if k not in timed} == {
        k: v for k, v in whole["metrics"].items() if k not in timed
    }
    assert [p["step"] for p in resumed["curve"]] == [0, STEPS]


def test_a_finished_fit_is_not_run_again_and_other_settings_are(config: match.Config) -> None:
    config = replace(config, loss="weight", name="x", evaluate_every=0)
    match.run(config)
    made = (
        result(config)["made_at"],
        (config.workdir / "match" / "x" / "generator" / "manifest.json").stat().st_mtime_ns,
    )
    match.run(config)
    assert made == (
        result(config)["made_at"],
        (config.workdir / "match" / "x" / "generator" / "manifest.json").stat().st_mtime_ns,
    )
    longer = replace(config, training=replace(config.training, steps=2))
    match.run(longer)
    assert result(longer)["curve"][-1]["step"] == 2


def test_a_fit_to_more_teachers_is_another_fit(config: match.Config) -> None:
    """Neither the result nor the state of the one to fewer is taken for it."""
    config = replace(config, loss="weight", name="x", evaluate_every=0)
    everyone = load_index(config.workdir)
    save_index(config.workdir, everyone[:-1])
    match.run(config)
    assert everyone[-1].adapter_id not in adapters(result(config))
    save_index(config.workdir, everyone)
    match.run(config)
    assert adapters(result(config)) == {entry.adapter_id for entry in everyone}
    [before, now] = (read_metrics(config.workdir / "metrics" / f"match.{name}.jsonl") for name in ("x.1", "x"))
    assert len(before) == len(now) == STEPS  # all steps were made anew


def adapters(found: dict[str, Any]) -> set[str]:
    return {*found["train_adapters"], *found["heldout_adapters"]}


def test_the_generator_is_an_artefact_of_the_training_tasks_only(config: match.Config) -> None:
    config = replace(config, loss="weight", evaluate_every=0)
    match.run(config)
    checkpoint = load_generator(config.workdir / "match" / "weight-s0" / "generator")
    found = result(config)
    assert [f"{t.task_id}_000" for t in checkpoint.manifest.tasks] == found["train_adapters"]
    assert checkpoint.manifest.made_by["command"].startswith("python -m training match ")
    assert read_manifest(config.workdir)["match/weight-s0/generator"].kind == "generator"


def test_teachers_measured_on_other_probes_are_refused(config: match.Config) -> None:
    with RunLog(config.workdir, "match", config) as log:
        load_material(config, log)
        other = replace(config, probes=replace(config.probes, seed=1))
        with pytest.raises(CacheMismatchError, match="probes is"):
            load_material(other, log)


def test_conditions_are_drawn_anew_in_every_epoch_and_depend_on_the_step_alone(config: match.Config) -> None:
    with RunLog(config.workdir, "match", config) as log:
        material = load_material(config, log)
    sampler = material.sampler(2, 0, with_teachers=False)
    size = len(material.train)
    batches = [sampler(step) for step in range(size)]  # two epochs
    seen: dict[str, list[torch.Tensor]] = {}
    for group in (group for batch in batches for group in batch):
        assert group.condition is not None
        seen.setdefault(group.task_id, []).append(group.condition)
        assert group.teacher is None
    assert {len(conditions) for conditions in seen.values()} == {2}
    assert any(not torch.equal(a, b) for a, b in seen.values())
    again = sampler(1)
    for group, before in zip(again, batches[1], strict=True):
        assert group.task_id == before.task_id
        assert torch.equal(group.condition, before.condition)  # type: ignore[arg-type]


@pytest.mark.parametrize("change", [lambda c: replace(c, heldout_share=0.0)])
def test_without_held_out_adapters_the_curve_follows_the_training_ones(
    config: match.Config, change: Callable[[match.Config], match.Config]
) -> None:
    config = change(replace(config, loss="weight"))
    match.run(config)
    found = result(config)
    assert found["heldout_adapters"] == []
    assert "heldout_cosine" not in found["metrics"]
    assert "train_cosine" in found["curve"][-1]
