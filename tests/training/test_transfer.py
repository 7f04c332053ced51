from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.kernel_ridge import KernelRidge

from llgbm.checkpoint import load_generator
from llgbm.config import GeneratorConfig
from llgbm.errors import ConfigError
from llgbm.training import TrainingConfig
from training import cores, fit, report, transfer
from training.progress_check import CheckConfig
from training.results import read_result
from training.sampler import SamplerConfig
from training.tasks import load_tasks


@pytest.fixture
def config(tmp_path: Path, tasks_folder: Path, tiny_base_path: Path, tiny_encoder_path: Path) -> transfer.Config:
    """Cores for the six small tasks, which `cores_of` writes."""
    fitted = fit.Config(
        workdir=tmp_path / "fit", tasks=tasks_folder, base=str(tiny_base_path), text_encoder=str(tiny_encoder_path),
        generator=GeneratorConfig(hidden_size=32, basis_rank=8, num_blocks=1),
        sampler=SamplerConfig(groups=2, max_row_tokens=400),
        training=TrainingConfig(steps=1, warmup_steps=1), check=CheckConfig(every=0),
    )  # fmt: skip
    fit.run(fitted)
    return transfer.Config(
        workdir=tmp_path / "transfer", cores=tmp_path / "cores", checkpoint=fitted.artefact, tasks=tasks_folder,
        counts=(2, 4), folds=3, alpha=1e-3,
    )  # fmt: skip


def cores_of(config: transfer.Config, of: list[str]) -> None:
    """Give each task the cores of the kind that `of` names for it, in the order of the tasks."""
    checkpoint = load_generator(config.checkpoint)
    q, p = (side[0] for side in checkpoint.generator.cores(None))
    made = cores.Config(workdir=config.cores, checkpoint=config.checkpoint)
    for task, kind in zip(load_tasks(config.tasks), of, strict=True):
        random = torch.Generator().manual_seed(sum(map(ord, kind)))
        path = cores.core_file(made.workdir, task.task_id)
        found = cores.Cores(q + torch.randn(q.shape, generator=random), p + torch.randn(p.shape, generator=random))
        cores.write_cores(path, found, {"generator": checkpoint.manifest.digest})


def test_cores_that_say_nothing_of_the_task_cannot_be_told(config: transfer.Config) -> None:
    cores_of(config, [f"own kind {i}" for i in range(6)])
    transfer.run(config)
    found = read_result(config.workdir / "results" / "transfer.json")
    assert found["num_tasks"] == 6
    assert set(found["distances"]) == {"tasks", "categories"}
    for curve in found["distances"].values():
        assert set(curve) == {"2", "4"}
        assert all(one["mean_of_fitted"] > 1 and one["own"] > 0.9 for one in curve.values())
    report.run(report.Config(workdir=config.workdir))
    page = (config.workdir / "report" / "report.html").read_text()
    assert "<h2>Would more tasks help?</h2>" in page


@given(st.integers(0, 2**16))
def test_the_distances_are_those_of_a_regression_on_the_cores_themselves(seed: int) -> None:
    rng = np.random.default_rng(seed)
    targets, embeddings = rng.normal(size=(5, 7)), rng.normal(size=(15, 4))
    texts = transfer.Texts(embeddings, np.arange(15) % 5, np.arange(15) < 10)
    config = transfer.Config(gamma=0.3, alpha=0.5)
    fitted, left_out = np.array([0, 2, 4]), np.array([1, 3])
    found = transfer.left_out_distances(texts, targets @ targets.T, fitted, left_out, config)

    on = [i for i in range(10) if texts.task[i] in fitted]
    mean = targets[fitted].mean(0)
    ridge = KernelRidge(alpha=0.5, kernel="rbf", gamma=0.3).fit(embeddings[on], targets[texts.task[on]] - mean)
    asked = [i for i in range(10, 15) if texts.task[i] in left_out]
    said, truth = ridge.predict(embeddings[asked]) + mean, targets[texts.task[asked]]
    assert found["own"] == pytest.approx(np.square(said - truth).sum(1).mean())
    assert found["another"] == pytest.approx(np.square(said - truth[::-1]).sum(1).mean())
    assert found["mean_of_fitted"] == pytest.approx(np.square(mean - truth).sum(1).mean())


def test_more_tasks_than_have_cores_are_refused(config: transfer.Config) -> None:
    cores_of(config, ["a", "b", "c", "d", "e", "f"])
    with pytest.raises(ConfigError, match="the cores of 6 tasks, too few to fit on 5 with one of 3 parts left out"):
        transfer.run(replace(config, counts=(5,)))
