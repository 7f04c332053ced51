"""One cluster for the whole file: two machines, of which the first test loses one."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from llgbm.base import Base
from llgbm.config import GeneratorConfig
from llgbm.errors import CacheMismatchError, ConfigError
from llgbm.training import TrainingConfig
from tests.training.conftest import teacher_config
from training.adapters.delta_store import ProbeConfig
from training.phases import deltas
from training.quality import evaluate
from training.recipe import fit
from training.recipe.progress_check import CheckConfig
from training.recipe.sampler import SamplerConfig
from training.runs.fan_out import open_workers
from training.runs.results import read_result
from training.runs.workers import RayTask, WorkerLostError

pytestmark = [
    pytest.mark.ray,
    # Ray's own code is not held to this project's rule for warnings
    pytest.mark.filterwarnings("default"),
]


@pytest.fixture(scope="module")
def machines() -> Iterator[tuple[Any, Any]]:
    from examples.teachers_lose_a_worker import two_machines

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the workers
    with two_machines() as pair:
        yield pair
    torch.set_num_threads(threads)


def test_teachers_are_the_same_when_a_worker_is_lost_midway(
    machines: tuple[Any, Any], tmp_path: Path, tasks_folder: Path, tiny_base_path: Path
) -> None:
    from examples.teachers_lose_a_worker import lose_one_midway

    config = replace(
        teacher_config(tmp_path / "undisturbed", tasks_folder, tiny_base_path),
        tasks=("upper", "title", "next", "parity"),
        steps=60,
    )
    found = lose_one_midway(config, *machines)
    assert found["identical"], found
    assert (found["teachers"], found["machine_lost"]) == (4, True)
    assert found["finished_when_the_worker_was_lost"] < 4
    index, other = ((tmp_path / name / "manifest.json").read_bytes() for name in ("undisturbed", "disturbed"))
    assert index == other


def test_deltas_are_those_of_one_process(
    machines: object, workdir: Path, tasks_folder: Path, tiny_base_path: Path
) -> None:
    config = deltas.Config(
        workdir=workdir, folder=tasks_folder, base=str(tiny_base_path), probes=ProbeConfig(count=4, layers=2)
    )
    deltas.run(config)
    deltas.run(replace(config, name="on_ray", ray="auto", ray_shard=4))
    names = {path.name for path in (workdir / "deltas").glob("*.npy")} | {"manifest.json"}
    assert len(names) == 8
    for name in names:
        assert (workdir / "on_ray" / name).read_bytes() == (workdir / "deltas" / name).read_bytes()
    one, other = (read_result(workdir / "results" / f"{name}.json") for name in ("deltas", "on_ray"))
    assert {k: v for k, v in one.items() if k not in ("command", "made_at")} == {
        k: v for k, v in other.items() if k not in ("command", "made_at")
    }


def test_the_table_is_that_of_one_process(
    machines: object,
    tmp_path: Path,
    trained_workdir: Path,
    tasks_folder: Path,
    tiny_base_path: Path,
    tiny_encoder_path: Path,
) -> None:
    fit.run(
        fit.Config(
            workdir=tmp_path / "fit",
            tasks=tasks_folder,
            base=str(tiny_base_path),
            text_encoder=str(tiny_encoder_path),
            generator=GeneratorConfig(basis_rank=8, hidden_size=16, num_blocks=1),
            sampler=SamplerConfig(groups=2),
            training=TrainingConfig(steps=2, warmup_steps=1),
            check=CheckConfig(every=0),
        )
    )
    config = evaluate.Config(
        workdir=tmp_path / "one",
        output=tmp_path / "one.json",
        checkpoint=tmp_path / "fit" / "generator",
        teachers=trained_workdir,
        tasks=tasks_folder,
        task_ids=("upper", "next"),
        heldout=None,
        methods=("base", "base + description", "generated", "teacher", "multi-task LoRA"),
        base=str(tiny_base_path),
        num_rows=3,
    )
    evaluate.run(config)
    on_ray = replace(config, workdir=tmp_path / "ray", output=tmp_path / "ray.json", ray="auto")
    evaluate.run(replace(on_ray, task_ids=("next",)))
    kept = (on_ray.workdir / "cells.jsonl").read_text()
    evaluate.run(on_ray)
    one, other = (json.loads(path.read_text()) for path in (config.output, on_ray.output))
    assert other["columns"] == one["columns"]
    evaluate.run(on_ray)  # nothing is left to do
    lines = (on_ray.workdir / "cells.jsonl").read_text().splitlines()
    assert len(lines) == 2 * len(kept.splitlines())


def dies_once(base: Base, item: int, flag: Path) -> int:
    """Kills its own process while it does item 1, unless `flag` says that it did so before."""
    if item == 1 and not flag.exists():
        flag.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return item + base.spec.num_layers


def refuses(base: Base, item: int) -> int:
    raise ConfigError(f"no such thing as {item}")


def dies(base: Base, item: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return item


def test_a_lost_process_is_made_up_for_and_an_error_comes_as_it_is(
    machines: object, tmp_path: Path, tiny_base: Base, tiny_base_path: Path
) -> None:
    with open_workers("auto", RayTask(retries=1), tiny_base, str(tiny_base_path), "float32") as workers:
        done = dict(workers.map(partial(dies_once, flag=tmp_path / "flag"), range(4)))
        assert done == {item: item + tiny_base.spec.num_layers for item in range(4)}
        assert (tmp_path / "flag").exists()
        with pytest.raises(ConfigError, match=r"^no such thing as 7$"):
            list(workers.map(refuses, [7]))
    with (
        open_workers("auto", RayTask(retries=0), tiny_base, str(tiny_base_path), "float32") as workers,
        pytest.raises(WorkerLostError, match="given up after 0 retries"),
    ):
        list(workers.map(dies, [1]))


def test_other_weights_under_the_same_name_and_tasks_that_fit_nowhere_are_refused(
    machines: object, tiny_base: Base, tiny_base_path: Path
) -> None:
    other = replace(tiny_base, revision="another")
    with (
        open_workers("auto", RayTask(), other, str(tiny_base_path), "float32") as workers,
        pytest.raises(CacheMismatchError, match="has other weights under"),
    ):
        list(workers.map(refuses, [1]))
    with (
        pytest.raises(
            ConfigError, match=r"ray_task.cpus: 64 are more than any machine of the cluster has, which is 1 "
        ),
        open_workers("auto", RayTask(cpus=64), tiny_base, str(tiny_base_path), "float32"),
    ):
        pass


@pytest.mark.parametrize(
    ("address", "message"), [("true", "'true' is neither auto, local nor an address"), ("nowhere", "neither")]
)
def test_an_address_that_is_none_is_refused(
    address: str, message: str, tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(ConfigError, match=message), open_workers(address, RayTask(), tiny_base, "base", "float32"):
        pass
