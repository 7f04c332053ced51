from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llgbm.checkpoint import load_generator
from llgbm.config import GeneratorConfig
from llgbm.errors import CheckpointError, ConfigError
from llgbm.training import TrainingConfig
from training.cli.config import to_yaml
from training.recipe import export, fit
from training.recipe.progress_check import CheckConfig
from training.recipe.sampler import SamplerConfig


@pytest.fixture(scope="module")
def fitted(
    tmp_path_factory: pytest.TempPathFactory, tasks_folder: Path, tiny_base_path: Path, tiny_encoder_path: Path
) -> fit.Config:
    """A fit of two steps with its artefact, state and configuration file."""
    config = fit.Config(
        workdir=tmp_path_factory.mktemp("fit"), tasks=tasks_folder, base=str(tiny_base_path),
        text_encoder=str(tiny_encoder_path), sampler=SamplerConfig(groups=2), check=CheckConfig(every=0),
        generator=GeneratorConfig(basis_rank=8, hidden_size=16, num_blocks=1),
        training=TrainingConfig(steps=2, warmup_steps=1),
    )  # fmt: skip
    fit.run(config)
    (config.workdir / "fit.yaml").write_text(to_yaml(config))
    return config


def test_a_state_becomes_the_artefact_that_the_fit_has_written(fitted: fit.Config, tmp_path: Path) -> None:
    out = tmp_path / "generator"
    export.run(export.Config(state=fitted.workdir / "state.pt", fit=(fitted.workdir / "fit.yaml",), out=out))
    mine, theirs = load_generator(out), load_generator(fitted.workdir / "generator")
    assert mine.manifest.digest == theirs.manifest.digest
    assert mine.manifest.tasks == theirs.manifest.tasks
    assert mine.manifest.made_by["steps"] == 2
    assert mine.manifest.made_by["command"] == theirs.manifest.made_by["command"]


def test_a_state_of_another_configuration_is_refused(fitted: fit.Config, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    config = export.Config(state=fitted.workdir / "state.pt", fit=(other,), out=tmp_path / "out")
    other.write_text(to_yaml(replace(fitted, generator=GeneratorConfig(basis_rank=4, hidden_size=16, num_blocks=1))))
    with pytest.raises(ConfigError, match=r"other settings \(generator\.basis_rank 8 instead of 4"):
        export.run(config)
    other.write_text(to_yaml(replace(fitted, training=replace(fitted.training, seed=5))))
    with pytest.raises(ConfigError, match=r"other settings \(training\.seed 0 instead of 5\)"):
        export.run(config)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 torn"])
def test_a_torn_state_is_refused(fitted: fit.Config, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "state.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match="cannot be read as the state of a fit"):
        export.run(export.Config(state=tmp_path / "state.pt", fit=(fitted.workdir / "fit.yaml",), out=tmp_path / "out"))


def test_another_file_of_torch_is_no_state(fitted: fit.Config, tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "state.pt")
    with pytest.raises(CheckpointError, match="is not the state of a fit"):
        export.run(export.Config(state=tmp_path / "state.pt", fit=(fitted.workdir / "fit.yaml",), out=tmp_path / "out"))


def test_a_state_needs_its_configuration() -> None:
    with pytest.raises(ConfigError, match="name the fit's configuration file too"):
        export.run(export.Config(state=Path("y")))
