from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llgbm.checkpoint import load_generator
from llgbm.config import GeneratorConfig
from llgbm.errors import ConfigError
from llgbm.training import TrainingConfig
from training import average, fit
from training.progress_check import CheckConfig
from training.sampler import SamplerConfig


@pytest.fixture(scope="module")
def fits(
    tmp_path_factory: pytest.TempPathFactory, tasks_folder: Path, tiny_base_path: Path, tiny_encoder_path: Path
) -> tuple[fit.Config, fit.Config]:
    """A fit of two tasks, and one of two others that went on from it."""
    first = fit.Config(
        workdir=tmp_path_factory.mktemp("first"), tasks=tasks_folder, task_ids=("first", "next"),
        base=str(tiny_base_path), text_encoder=str(tiny_encoder_path), sampler=SamplerConfig(groups=2),
        generator=GeneratorConfig(basis_rank=8, hidden_size=16, num_blocks=1), check=CheckConfig(every=0),
        training=TrainingConfig(steps=2, warmup_steps=1, learning_rate=1e-2),
    )  # fmt: skip
    second = replace(
        first, workdir=tmp_path_factory.mktemp("second"), task_ids=("parity", "upper"), start=first.artefact
    )
    fit.run(first)
    fit.run(second)
    return first, second


def test_the_mean_is_of_all_parameters_and_knows_the_tasks_of_both(
    fits: tuple[fit.Config, fit.Config], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = tuple(config.artefact for config in fits)
    average.run(average.Config(checkpoints=paths, weights=(0.25, 0.75), out=tmp_path / "mean"))
    (one, two), mean = (load_generator(path) for path in paths), load_generator(tmp_path / "mean")
    states = [checkpoint.generator.state_dict() for checkpoint in (one, two, mean)]
    for name, found in states[2].items():  # saved in float16, the bases in int8
        torch.testing.assert_close(found, 0.25 * states[0][name] + 0.75 * states[1][name], atol=5e-3, rtol=0)
    assert {task.task_id for task in mean.manifest.tasks} == {"first", "next", "parity", "upper"}
    near = mean.prompt_index.nearest(two.prompt_index.embeddings[0], 4)
    assert {mean.manifest.tasks[place].task_id for place, _ in near} == {"parity", "upper"}
    assert [of["digest"] for of in mean.manifest.made_by["of"]] == [one.manifest.digest, two.manifest.digest]
    assert not mean.manifest.confidence
    assert f"generator {mean.manifest.digest[:12]}, the mean of 2" in capsys.readouterr().out


def test_generators_of_other_sizes_have_no_mean(fits: tuple[fit.Config, fit.Config], tmp_path: Path) -> None:
    other = replace(fits[0], workdir=tmp_path / "other", generator=GeneratorConfig(basis_rank=8, hidden_size=24))
    fit.run(other)
    paths = (fits[0].artefact, other.artefact)
    with pytest.raises(ConfigError, match="of another base, text encoder, LoRASpec or size"):
        average.run(average.Config(checkpoints=paths, out=tmp_path / "mean"))
    assert not (tmp_path / "mean").exists()


def test_one_generator_is_no_mean(fits: tuple[fit.Config, fit.Config], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least two checkpoints"):
        average.run(average.Config(checkpoints=(fits[0].artefact,), out=tmp_path))


@pytest.mark.parametrize("weights", [(1.0,), (0.5, 0.6)])
def test_weights_that_make_no_mean_are_refused(weights: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="one for each of the 2 checkpoints, in sum 1"):
        average.Config(checkpoints=(Path("a"), Path("b")), weights=weights)
