from dataclasses import replace
from pathlib import Path

import pytest

from llgbm.base import load_base
from llgbm.config import GeneratorConfig, default_lora
from training.adapters.delta_store import ProbeConfig
from training.cli.commands import COMMANDS
from training.phases import scale
from training.phases.cost import CostConfig
from training.runs.results import read_result
from training.tasks.format import load_tasks


@pytest.fixture
def config(tmp_path: Path, tasks_folder: Path, tiny_base_path: Path, tiny_encoder_path: Path) -> scale.Config:
    return scale.Config(
        workdir=tmp_path, bases=(str(tiny_base_path),), text_encoder=str(tiny_encoder_path), folder=tasks_folder,
        probes=ProbeConfig(count=2, layers=1), generator=GeneratorConfig(basis_rank=8, hidden_size=16, num_blocks=1),
        cost=CostConfig(rows=2, row_tokens=8, repeats=1, basis_ranks=(8,)), groups=2, fit_steps=2, parallel_steps=0,
    )  # fmt: skip


def test_a_base_is_measured_from_gradients_to_an_applied_adapter(config: scale.Config) -> None:
    scale.run(config)
    found = read_result(config.workdir / "results" / "scale.json")
    [row] = found["bases"]
    for label in ("plain", "recomputed"):
        assert row["gradients"][label]["reached"] == row["gradients"][label]["tensors"] == 28
    assert row["fit"]["steps"] == 2
    assert row["fit"]["log_likelihood_moved"] > 0
    assert row["fit"]["artefact_bytes"] > 0
    assert (config.workdir / "tiny" / "adapter" / "adapter_model.safetensors").exists()
    assert row["preset"] == "tiny"
    assert "parallel" not in found


def test_a_short_fit_that_was_there_took_what_its_steps_took(config: scale.Config, tiny_base_path: Path) -> None:
    base, tasks = load_base(tiny_base_path), load_tasks(config.folder)
    first, again = (
        scale.short_fit(config, str(tiny_base_path), base, default_lora(base.spec), tasks) for _ in range(2)
    )
    assert first["seconds"] == again["seconds"] > 0


def test_the_curves_of_one_and_several_processes_are_compared(
    config: scale.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here both run in this process; `test_parallel` runs two."""
    from training.cli.command_line import main

    launched: list[int] = []

    def run_here(words: list[str], processes: int) -> None:
        launched.append(processes)
        assert main(COMMANDS, words, program="training") == 0

    monkeypatch.setattr(scale, "launch", run_here)
    found = scale.compare_processes(replace(config, parallel_steps=2))
    assert launched == [1, 2]
    assert found["losses_of_one"] == found["losses_of_several"]
    assert len(found["losses_of_one"]) == 2
    assert found["largest_relative_difference"] == 0
