from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.kernel_ridge import KernelRidge

from llgbm.base import load_base
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
        base=str(tiny_base_path), base_layer=-1, counts=(2, 4), folds=3, alpha=1e-3,
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
        cores.write_cores(path, found, cores.belonging(checkpoint))


def test_cores_that_say_nothing_of_the_task_cannot_be_told(config: transfer.Config) -> None:
    cores_of(config, [f"own kind {i}" for i in range(6)])
    transfer.run(config)
    found = read_result(config.workdir / "results" / "transfer.json")
    assert found["num_tasks"] == 6
    assert set(found["distances"]) == {"tasks", "categories"}
    for curve in found["distances"].values():
        assert set(curve) == {"2", "4"}
        assert all(one["mean_of_fitted"] > 1 and one["own"] > 0.9 for one in curve.values())
        assert all(one["best_mixture"] < one["own"] for one in curve.values())
    for kinds in found["embeddings"].values():
        assert set(kinds) == {"text encoder", "base", "text encoder and base"}
        assert all(one["own"] > 0.9 for one in kinds.values())
    report.run(report.Config(workdir=config.workdir))
    page = (config.workdir / "report" / "report.html").read_text()
    assert "<h2>Would more tasks help?</h2>" in page


@given(st.integers(0, 2**16))
def test_the_distances_are_those_of_a_regression_on_the_cores_themselves(seed: int) -> None:
    rng = np.random.default_rng(seed)
    targets, embeddings = rng.normal(size=(5, 7)), rng.normal(size=(15, 4))
    texts = transfer.Texts(("",) * 15, embeddings, np.arange(15) % 5, np.arange(15) < 10)
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


@given(st.integers(0, 2**16))
def test_a_task_counts_once_however_many_wordings_it_holds_back(seed: int) -> None:
    rng = np.random.default_rng(seed)
    targets, embeddings = rng.normal(size=(5, 7)), rng.normal(size=(15, 4))
    texts = transfer.Texts(("",) * 15, embeddings, np.arange(15) % 5, np.arange(15) < 10)
    thrice = np.array([*range(15), 11, 11])  # the one that task 1 holds back
    more = transfer.Texts(("",) * 17, embeddings[thrice], texts.task[thrice], texts.seen[thrice])
    one, other = (
        transfer.left_out_distances(t, targets @ targets.T, np.array([0, 2, 4]), np.array([1, 3]), transfer.Config())
        for t in (texts, more)
    )
    for name in ("own", "mean_of_fitted"):
        assert one[name] == pytest.approx(other[name])


@given(st.integers(0, 2**16))
def test_no_mixture_is_nearer_than_the_best(seed: int) -> None:
    rng = np.random.default_rng(seed)
    targets = rng.normal(size=(6, 7))
    fitted, left_out = np.array([0, 2, 3, 5]), np.array([1, 4])
    best = transfer.mixture_distance(targets @ targets.T, fitted, left_out)
    for _ in range(20):
        weights = rng.normal(size=(2, 4))
        weights /= weights.sum(1, keepdims=True)
        assert np.square(weights @ targets[fitted] - targets[left_out]).sum(1).mean() >= best - 1e-9

    inside = np.array([[0.5, 0.25, 0.0, 0.25], [2.0, -1.0, 0.0, 0.0]]) @ targets[fitted]
    mixed = np.stack([targets[0], inside[0], targets[2], targets[3], inside[1], targets[5]])
    assert transfer.mixture_distance(mixed @ mixed.T, fitted, left_out) == pytest.approx(0, abs=1e-9)


def test_a_texts_states_do_not_depend_on_the_others(tiny_base_path: Path) -> None:
    tiny_base = load_base(tiny_base_path)  # output_hidden_states leaves hooks on its modules

    class Silent:
        def update(self, done: int, note: str = "") -> None: ...

    texts = [f"Say it {n} times, and then no more" for n in range(70)]
    together = transfer.mean_states(tiny_base, texts, 0, Silent())
    assert together.shape == (70, tiny_base.spec.hidden_size)
    ids = tiny_base.tokenizer(f"Task: {texts[66]}", return_tensors="pt").input_ids
    alone = tiny_base.model(ids, output_hidden_states=True).hidden_states[1][0, 1:].mean(0)
    np.testing.assert_allclose(together[66], alone.detach().numpy(), atol=1e-5)


def test_more_tasks_than_have_cores_are_refused(config: transfer.Config) -> None:
    cores_of(config, ["a", "b", "c", "d", "e", "f"])
    with pytest.raises(ConfigError, match="the cores of 6 tasks, too few to fit on 5 with one of 3 parts left out"):
        transfer.run(replace(config, counts=(5,)))
