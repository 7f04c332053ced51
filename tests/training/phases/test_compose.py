import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llgbm.adapters.index import load_index
from llgbm.adapters.peft_io import load_peft
from llgbm.base import Base
from llgbm.config import GeneratorConfig, lora_spec
from llgbm.delta import DeltaMeter
from llgbm.errors import ConfigError
from llgbm.lora import zeros
from llgbm.training import TrainingConfig
from tests.fixtures import random_lora
from tests.training.conftest import small_tasks
from training.adapters.delta_store import ProbeConfig
from training.adapters.teacher_folder import adapter_folder
from training.phases import compose, match
from training.runs.results import read_result


@pytest.fixture
def config(workdir: Path, tasks_folder: Path, tiny_base_path: Path) -> compose.Config:
    return compose.Config(
        workdir=workdir, folder=tasks_folder, base=str(tiny_base_path), probes=ProbeConfig(count=2, layers=1),
        pairs=(("upper", "next"),), num_rows=3, joint_steps=4,
    )  # fmt: skip


def test_a_pair_is_measured_and_its_joint_teacher_kept(config: compose.Config) -> None:
    compose.run(config)
    found = read_result(config.workdir / "results" / "composition.json")
    [pair] = found["pairs"]
    assert pair["pair"] == ["upper", "next"]
    assert all(-1 <= value <= 1 for value in pair["delta_cosines"].values())
    assert set(pair["accuracy"]) == {"base", "A", "B", "A + B", "(A + B) / 2", "trained on both"}
    assert all(0 <= x <= 1 and len(both) == 2 for both in pair["accuracy"].values() for x in both)
    assert found["mean"]["delta_cosines"] == pair["delta_cosines"]
    folder = adapter_folder(config.workdir / "joint", "upper.and.next", 0)
    stamp = (folder / "adapter_model.safetensors").stat().st_mtime_ns
    compose.run(config)
    assert (folder / "adapter_model.safetensors").stat().st_mtime_ns == stamp
    assert len(load_index(config.workdir)) == len(small_tasks())  # the joint ones are no teachers of the workdir


def test_a_joint_teacher_of_other_steps_or_rows_is_not_taken_for_this_one(
    config: compose.Config, tmp_path: Path
) -> None:
    compose.run(config)
    with pytest.raises(
        ConfigError, match=r"upper\.and\.next_000 was made with other settings \(steps 4 instead of 5\)"
    ):
        compose.run(replace(config, joint_steps=5))
    fewer = shutil.copytree(config.folder, tmp_path / "fewer")
    task = json.loads((fewer / "next.json").read_text())
    (fewer / "next.json").write_text(json.dumps(task | {"train": task["train"][:-1]}))
    with pytest.raises(ConfigError, match=r"task_digest \w+ instead of \w+"):
        compose.run(replace(config, folder=fewer))


def test_a_joint_teacher_is_trained_as_its_parts_were(config: compose.Config) -> None:
    with pytest.raises(ConfigError, match=r"set base=.* base_storage=float32"):
        compose.run(replace(config, base_storage="bfloat16"))
    (config.workdir / "artefacts.json").unlink()  # as if these teachers came from elsewhere
    compose.run(replace(config, joint_steps=1))
    joint = load_peft(adapter_folder(config.workdir / "joint", "upper.and.next", 0))[0]
    assert joint.spec == load_peft(adapter_folder(config.workdir, "upper", 0))[0].spec


def test_pairs_are_chosen_where_none_are_named(config: compose.Config) -> None:
    compose.run(replace(config, pairs=(), num_pairs=1, joint_steps=1))
    [pair] = read_result(config.workdir / "results" / "composition.json")["pairs"]
    categories = {t.task_id: t.category for t in small_tasks()}
    assert categories[pair["pair"][0]] != categories[pair["pair"][1]]


def test_with_a_generator_the_prompt_for_both_is_measured_too(config: compose.Config, tiny_encoder_path: Path) -> None:
    fit = match.Config(
        workdir=config.workdir, folder=config.folder, base=config.base, text_encoder=str(tiny_encoder_path),
        probes=config.probes, loss="weight", generator=GeneratorConfig(basis_rank=8, hidden_size=16, num_blocks=1),
        training=TrainingConfig(steps=2),
    )  # fmt: skip
    match.run(fit)
    compose.run(replace(config, checkpoint=config.workdir / "match" / fit.title / "generator"))
    [pair] = read_result(config.workdir / "results" / "composition.json")["pairs"]
    assert "generated ~ trained on both" in pair["delta_cosines"]
    assert "generated: A, then B" in pair["accuracy"]


def test_a_pair_without_teachers_is_refused(config: compose.Config) -> None:
    with pytest.raises(ConfigError, match="no teacher of 'lower'; train it first"):
        compose.run(replace(config, pairs=(("upper", "lower"),)))


def test_the_algebra_is_that_of_the_adapters(tiny_base: Base) -> None:
    """For small adapters a delta is linear, so the sum and the difference of adapters have those of the deltas."""
    meter = DeltaMeter(tiny_base, ProbeConfig(count=2, layers=1, chat=False).build())
    spec = lora_spec("tiny")
    small = (random_lora(spec, 0, size=1e-3), random_lora(spec, 1, size=1e-3))
    adapters = compose.composed(small, small[0])
    cosines = compose.compare_deltas(meter, adapters)
    assert cosines["A + B ~ d(A) + d(B)"] > 0.99
    assert cosines["A - B ~ d(A) - d(B)"] > 0.99
    assert cosines["(A + B) / 2 ~ d(A) + d(B)"] > 0.99
    assert cosines["A ~ trained on both"] == pytest.approx(1, abs=1e-3)
    nothing = compose.compare_deltas(meter, compose.composed((small[0], zeros(spec)), small[0]))
    assert nothing["d(A) + d(B) ~ trained on both"] == pytest.approx(1, abs=1e-3)
    assert nothing["A ~ B"] == 0
    half = adapters["(A + B) / 2"]
    whole = adapters["A + B"]
    assert half is not None
    assert whole is not None
    name = spec.names[0]
    torch.testing.assert_close(2 * half.delta_weight(name), whole.delta_weight(name))
