import sys
from pathlib import Path

import pytest
import torch

from llgbm.checkpoint import load_generator
from llgbm.errors import ConfigError
from training.cli.config import from_dict, to_dict
from training.recipe import fit
from training.runs.metrics import read_metrics
from training.runs.parallel import launch, process_group
from training.runs.results import command_of


@pytest.fixture
def config(tmp_path: Path, tasks_folder: Path, tiny_base_path: Path, tiny_encoder_path: Path) -> fit.Config:
    values = to_dict(fit.Config(workdir=tmp_path / "one", tasks=tasks_folder))
    values |= {"base": str(tiny_base_path), "text_encoder": str(tiny_encoder_path)}
    values["generator"] |= {"basis_rank": 8, "hidden_size": 16, "num_blocks": 1}
    values["training"] |= {"steps": 3, "warmup_steps": 1}
    values["sampler"] |= {"groups": 3, "warm_start_steps": 1}
    values["check"] |= {"every": 3, "num_tasks": 2, "num_rows": 2}
    return from_dict(fit.Config, values)


def test_two_processes_of_accelerate_give_the_loss_curve_and_the_artefact_of_one(
    config: fit.Config, tmp_path: Path
) -> None:
    fit.run(config)
    two = from_dict(fit.Config, to_dict(config) | {"workdir": str(tmp_path / "two")})
    words = [word.strip("'") for word in command_of("fit", two).split()[3:]]
    launch(words, 2)
    curves = [
        [line for line in read_metrics(folder / "metrics" / "fit.jsonl") if "loss" in line]
        for folder in (config.workdir, two.workdir)
    ]
    assert [line["step"] for line in curves[1]] == [0, 1, 2]
    for alone, shared in zip(*curves, strict=True):
        assert shared["loss"] == pytest.approx(alone["loss"], rel=1e-4)
        assert shared["grad_norm"] == pytest.approx(alone["grad_norm"], rel=1e-3)
        assert shared["tokens"] >= alone["tokens"]  # a shared head is stored once in each process
    one, other = (load_generator(folder / "generator").generator for folder in (config.workdir, two.workdir))
    for name, parameter in one.named_parameters():
        torch.testing.assert_close(parameter, other.get_parameter(name), rtol=0.05, atol=5e-3)


def test_processes_that_fail_say_so() -> None:
    with pytest.raises(ConfigError, match=r"1 processes of `training fits` ended with \d+: ."):
        launch(["fits"], 1)


def test_several_processes_need_accelerate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which an installation that only serves leaves out."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(ConfigError, match=r"needs accelerate: pip install -e '\.\[training\]'"):
        process_group()


def test_a_process_alone_has_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    assert process_group() is None
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert process_group() is None
