import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llgbm.adapters.index import load_index, save_index
from llgbm.config import GeneratorConfig
from llgbm.errors import ConfigError
from llgbm.matching.delta_head import DeltaHeadConfig
from llgbm.training import TrainingConfig
from training.adapters.delta_store import ProbeConfig
from training.phases import ablate, match
from training.runs.metrics import read_metrics
from training.runs.results import read_result


@pytest.fixture
def config(workdir: Path, tasks_folder: Path, tiny_base_path: Path, tiny_encoder_path: Path) -> ablate.Config:
    return ablate.Config(
        workdir=workdir, folder=tasks_folder, base=str(tiny_base_path), text_encoder=str(tiny_encoder_path),
        probes=ProbeConfig(count=2, layers=1, chat=False), groups=2, head_directions=2, evaluate_every=2,
        head=DeltaHeadConfig(sketch_size=2, output_rank=8, correction_size=8),
        generator=GeneratorConfig(basis_rank=8, hidden_size=16, num_blocks=1),
        training=TrainingConfig(steps=4, learning_rate=1e-2, warmup_steps=1),
        kinds=("weight", "delta", "guided"), seeds=(0, 1), every=2, guided_every=(1, 4),
    )  # fmt: skip


def test_all_arms_with_their_spread_and_the_cost_of_guided_fits(config: ablate.Config) -> None:
    ablate.run(config)
    ablation = read_result(config.workdir / "results" / "ablation.json")
    assert [(a["kind"], a["seed"]) for a in ablation["arms"]] == [
        (kind, seed) for kind in config.kinds for seed in config.seeds
    ]
    spread = ablation["summary"]["delta"]["heldout_cosine"]
    assert spread["count"] == 2
    assert spread["deviation"] > 0  # seeds matter
    guided = read_result(config.workdir / "results" / "guided.json")
    rows = {row["name"]: row for row in guided["rows"]}
    assert list(rows) == ["delta-only", "guided, N = 1", "guided, N = 4"]
    assert [row["base_forwards"] for row in rows.values()] == [8, 8, 2]
    assert rows["guided, N = 4"]["fewer_forwards"] == 4
    assert rows["delta-only"]["calibration_passes"] == 0 < rows["guided, N = 4"]["calibration_passes"]
    assert rows["delta-only"]["reached_at"] is not None
    assert [p["step"] for p in rows["guided, N = 1"]["curve"]] == [0, 2, 4]
    assert not list((config.workdir / "ablate").glob("*.pt"))


def test_a_stopped_ablation_goes_on_where_it_was(config: ablate.Config, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(config, kinds=("weight",), guided_every=())
    ablate.run(replace(config, seeds=(0,)))
    arms = config.workdir / "ablate" / "arms"
    stamp = (arms / "weight-s0.json").stat().st_mtime_ns
    ablate.run(config)
    assert (arms / "weight-s0.json").stat().st_mtime_ns == stamp
    assert (arms / "weight-s1.json").exists()
    monkeypatch.setattr(ablate, "fit_arm", lambda *args: pytest.fail("an arm was run again"))
    ablate.run(config)


def test_an_arm_of_other_settings_is_run_again(config: ablate.Config) -> None:
    config = replace(config, kinds=("weight",), seeds=(0,), guided_every=())
    ablate.run(config)
    first = read_result(config.workdir / "results" / "ablation.json")["arms"]
    ablate.run(replace(config, training=replace(config.training, steps=2)))
    assert read_result(config.workdir / "results" / "ablation.json")["arms"] != first


def one_arm(config: ablate.Config) -> ablate.Config:
    training = replace(config.training, checkpoint_seconds=-1.0)  # a state after every step
    return replace(config, kinds=("weight",), seeds=(0,), guided_every=(), training=training)


def test_an_arm_of_other_teachers_is_run_again(config: ablate.Config) -> None:
    config, everyone = one_arm(config), load_index(config.workdir)
    for entries in (everyone[:-1], everyone):
        save_index(config.workdir, entries)
        ablate.run(config)
        found = json.loads((config.workdir / "ablate" / "arms" / "weight-s0.json").read_text())
        adapters = {*found["train_adapters"], *found["heldout_adapters"]}
        assert adapters == {entry.adapter_id for entry in entries}


def test_a_half_done_arm_does_not_go_on_with_other_teachers(
    config: ablate.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    class PowerCutError(Exception):
        pass

    def cut(recorder: Any, done: int) -> None:
        if done == 2:
            raise PowerCutError

    config, everyone = one_arm(config), load_index(config.workdir)
    save_index(config.workdir, everyone[:-1])
    with monkeypatch.context() as patch:
        patch.setattr(match._Recorder, "measure", cut)
        with pytest.raises(PowerCutError):
            ablate.run(config)
    save_index(config.workdir, everyone)
    ablate.run(config)
    steps = [len(read_metrics(config.workdir / "metrics" / f"ablate.weight-s0{of}.jsonl")) for of in (".1", "")]
    assert steps == [2, 4]


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match="'deltas' is none of weight, delta, multitask, guided"):
        ablate.Config(kinds=("deltas",))


def arm(every: int | None, cosines: list[float], forwards: list[int]) -> dict[str, Any]:
    curve = [
        {"step": 10 * i, "heldout_cosine": c, "base_forwards": f, "seconds": float(f)}
        for i, (c, f) in enumerate(zip(cosines, forwards, strict=True))
    ]
    metrics = {
        "heldout_cosine": cosines[-1], "train_cosine": 0.9, "base_forwards": float(forwards[-1]),
        "calibration_passes": 5.0, "seconds": 1.0, "cpu_seconds": 1.0, "calibration_seconds": 2.0,
    }  # fmt: skip
    return {"every": every, "metrics": metrics, "curve": curve}


def test_equal_cosine_is_the_first_point_within_the_tolerance() -> None:
    found = ablate.compare_guided(
        arm(None, [0, 0.5, 0.6, 0.6], [0, 100, 200, 300]),
        [arm(10, [0, 0.4, 0.585, 0.59], [0, 10, 20, 30]), arm(20, [0, 0.3, 0.4, 0.5], [0, 5, 10, 15])],
        tolerance=0.02,
    )
    first, ten, twenty = found["rows"]
    assert found["target_cosine"] == pytest.approx(0.58)
    assert (first["reached_at"]["base_forwards"], ten["reached_at"]["base_forwards"]) == (200, 20)
    assert ten["reached_at"]["seconds"] == 22.0  # calibration counts
    assert twenty["reached_at"] is None
    assert (ten["fewer_forwards"], ten["fewer_passes"]) == (10, pytest.approx(305 / 35))
