import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llgbm.conditioning.encoder_lora import EncoderLoRA
from llgbm.conditioning.sentence_model import SentenceModel
from llgbm.errors import ConfigError
from llgbm.pretrained.find import pretrained_revision
from llgbm.text_encoder import PretrainedTextEncoder
from tests.training.recipe.sampler_runs import TASKS
from tests.training.tasks.test_families import write
from training.cli.command_line import main
from training.cli.commands import COMMANDS
from training.recipe import encoder
from training.recipe.wording_pairs import PairSampler
from training.runs.artefacts import read_manifest
from training.runs.metrics import read_metrics
from training.runs.results import read_results
from training.tasks.training_set import TrainingSet


@pytest.fixture
def config(tmp_path: Path, tasks_folder: Path, tiny_encoder_path: Path) -> encoder.Config:
    """Six tasks, forty steps."""
    return encoder.Config(
        workdir=tmp_path / "encoder", tasks=tasks_folder, text_encoder=str(tiny_encoder_path), rank=16, steps=40,
        learning_rate=1e-3,
    )  # fmt: skip


def test_the_loss_falls_and_held_out_families_are_told_apart(config: encoder.Config, tmp_path: Path) -> None:
    (tmp_path / "families").mkdir()
    write(tmp_path / "families")
    encoder.run(replace(config, heldout_families=tmp_path / "families"))
    lines = read_metrics(config.workdir / "metrics" / "encoder.jsonl")
    loss = [line["loss"] for line in lines]
    assert len(loss) == 40
    assert sum(loss[-10:]) < 0.7 * sum(loss[:10])
    lora = EncoderLoRA.load(config.lora_file)
    assert lora.tuned_on == {
        "encoder": config.text_encoder,
        "revision": pretrained_revision(Path(config.text_encoder)),
    }
    assert {a.shape[0] for a in lora.a.values()} == {16}
    result = read_results(config.workdir)["encoder"]
    assert (result["lora"], result["heldout_tasks"]) == (lora.digest, 2)
    for when in ("before", "after"):
        assert result["nearest_task"][when].keys() == {"unseen wordings", "examples"}
    assert read_manifest(config.workdir)["text_encoder.safetensors"].details["digest"] == lora.digest


def test_the_file_holds_what_was_trained(config: encoder.Config, tiny_encoder_path: Path) -> None:
    """The LoRA of a large rank gives the vectors of the trained model, and those are not the plain ones."""
    model = SentenceModel(tiny_encoder_path)
    sampler = PairSampler(TrainingSet(TASKS, [], []), 0)
    lora = encoder.tune(model, sampler, replace(config, rank=384, steps=10), lambda state: None)
    assert not any(p.requires_grad or m.training for m in model.modules() for p in m.parameters())
    texts = [text for task in TASKS for text in task.descriptions]
    trained = torch.nn.functional.normalize(model(texts), dim=-1)
    merged = PretrainedTextEncoder(tiny_encoder_path, lora=lora).encode(texts)
    plain = PretrainedTextEncoder(tiny_encoder_path).encode(texts)
    assert (merged - trained).norm() < 0.05 * (plain - trained).norm()
    changed = {name for name, p in SentenceModel(tiny_encoder_path).named_parameters()
               if not torch.equal(p, model.get_parameter(name))}  # fmt: skip
    assert {name.removeprefix("_transformer.").removesuffix(".weight") for name in changed} == set(model.linears)


def test_a_run_repeats_for_a_seed_and_leaves_the_global_generator_alone(config: encoder.Config) -> None:
    digests = []
    torch.manual_seed(7)
    before = torch.get_rng_state()
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        run = replace(config, workdir=config.workdir / name, seed=seed, steps=3, dtype="bfloat16")
        encoder.run(run)
        digests.append(EncoderLoRA.load(run.lora_file).digest)
    assert digests[0] == digests[1] != digests[2]
    assert torch.equal(torch.get_rng_state(), before)


def test_a_budget_of_time_ends_the_run(config: encoder.Config) -> None:
    encoder.run(replace(config, steps=10**6, seconds=1.0))
    rates = [line["learning_rate"] for line in read_metrics(config.workdir / "metrics" / "encoder.jsonl")]
    assert 2 < len(rates) < 10**6
    assert rates[-1] < 0.3 * max(rates)


def test_the_schedule_warms_up_and_falls_to_zero() -> None:
    config = encoder.Config(learning_rate=1.0, steps=100, seconds=20.0)
    rates = [config.learning_rate_at(step, 0.0) for step in range(100)]
    assert 0 < rates[0] < 0.5
    assert rates == sorted(rates)
    assert rates[50:] == [1.0] * 50
    assert config.learning_rate_at(50, config.spent(50, 0.0)) == pytest.approx(0.5)
    assert config.learning_rate_at(50, config.spent(50, 15.0)) == pytest.approx(0.25)
    assert config.spent(100, 0.0) == 1.0 == config.spent(0, 20.0)


def test_the_loss_of_pairs_that_are_found_is_small() -> None:
    vectors = torch.eye(4)
    loss, accuracy = encoder.contrastive_loss(vectors, vectors, 0.05)
    assert float(loss) == pytest.approx(0.0, abs=1e-6)
    assert accuracy == 1.0
    loss, accuracy = encoder.contrastive_loss(vectors, vectors.roll(1, 0), 0.05)
    assert float(loss) == pytest.approx(20.0, abs=1e-3)
    assert accuracy == 0.0
    loss, _ = encoder.contrastive_loss(vectors[:1].expand(4, 4), vectors[:1].expand(4, 4), 0.05)
    assert float(loss) == pytest.approx(math.log(4), abs=1e-6)


class ByTask:
    """Puts each text of a task on the task's axis; texts in `lost` on another one."""

    def __init__(self, lost: tuple[str, ...] = ()) -> None:
        self.axis = {text: i for i, task in enumerate(TASKS) for text in task.descriptions}
        self.axis |= {f"{r.input} -> {r.output}": i for i, task in enumerate(TASKS) for r in task.train}
        self.axis |= {text: (self.axis[text] + 1) % len(TASKS) for text in lost}

    def encode(self, texts: Any) -> torch.Tensor:
        return torch.eye(len(TASKS))[[self.axis[text] for text in texts]]


def test_the_nearest_task_is_right_where_the_vectors_are() -> None:
    right = encoder.nearest_task_accuracy(ByTask(), TASKS)
    assert right == {"unseen wordings": 1.0, "examples": 1.0}
    lost = TASKS[1].unseen_descriptions[0]
    assert encoder.nearest_task_accuracy(ByTask((lost,)), TASKS) == {"unseen wordings": 0.6667, "examples": 1.0}


@pytest.mark.parametrize("change", [{"steps": 0}, {"rank": 0}, {"seconds": -1.0}, {"learning_rate": 0.0}])
def test_settings_out_of_range_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="steps and rank must be at least 1"):
        encoder.Config(**change)


def test_a_rank_beyond_the_model_is_refused_before_the_work(config: encoder.Config) -> None:
    with pytest.raises(ConfigError, match="rank must be from 1 to 384"):
        encoder.run(replace(config, rank=385, steps=10**9))


def test_a_loss_that_is_not_finite_ends_the_run(config: encoder.Config) -> None:
    with pytest.raises(ConfigError, match="lower learning_rate"):
        encoder.run(replace(config, learning_rate=1e30))
    assert not config.lora_file.exists()


def test_the_command_line_runs_it(config: encoder.Config) -> None:
    """Without families held out it measures nothing."""
    words = [f"workdir={config.workdir}", f"tasks={config.tasks}", f"text_encoder={config.text_encoder}"]
    assert main(COMMANDS, ["encoder", *words, "steps=2", "rank=4"], program="training") == 0
    assert {a.shape[0] for a in EncoderLoRA.load(config.lora_file).a.values()} == {4}
    assert read_results(config.workdir)["encoder"]["nearest_task"] == {}
