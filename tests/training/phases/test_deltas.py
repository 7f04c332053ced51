import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from llgbm.adapters.peft_io import load_peft, save_peft
from llgbm.base import Base
from llgbm.delta import DeltaCache
from llgbm.errors import CacheMismatchError, ConfigError
from tests.training.conftest import small_tasks
from training.adapters.delta_store import ProbeConfig
from training.phases import deltas
from training.runs.results import read_result


@pytest.fixture
def config(workdir: Path, tasks_folder: Path, tiny_base_path: Path) -> deltas.Config:
    probes = ProbeConfig(count=4, layers=2)
    return deltas.Config(workdir=workdir, folder=tasks_folder, base=str(tiny_base_path), probes=probes)


def test_the_result_has_norms_silhouettes_and_a_map(config: deltas.Config) -> None:
    deltas.run(config)
    found = read_result(config.workdir / "results" / "deltas.json")
    ids = [f"{t.task_id}_000" for t in sorted(small_tasks(), key=lambda t: t.task_id)]
    assert sorted(a["id"] for a in found["adapters"]) == ids
    assert {a["family"] for a in found["adapters"]} == {"case", "numbers", "pick"}
    assert all(n > 0 for a in found["adapters"] for n in a["norm"] + a["relative_norm"])
    assert set(found["silhouette"]) == {"deltas", "flattened weights", "products BA"}
    assert all(-1 <= value <= 1 for value in found["silhouette"].values())
    assert all(len(places) == 6 and math.isfinite(x) for places in found["map"].values() for x, _ in places)
    assert set(found["norm_map"]["q_proj"]) == {"0", "1"}
    assert found["command"].startswith("python -m training deltas workdir=")


def test_deltas_are_measured_once(config: deltas.Config) -> None:
    deltas.run(config)
    stamps = {p: p.stat().st_mtime_ns for p in (config.workdir / "deltas").glob("*.npy")}
    assert len(stamps) == 7
    (config.workdir / "deltas" / "upper_000.npy").rename(config.workdir / "gone.npy")
    cache = DeltaCache(config.workdir / "deltas")
    cache.discard("upper_000")
    deltas.run(config)
    after = {p: p.stat().st_mtime_ns for p in (config.workdir / "deltas").glob("*.npy")}
    assert {p.name for p in stamps if after[p] != stamps[p]} == {"upper_000.npy"}
    assert (config.workdir / "gone.npy").read_bytes() == (config.workdir / "deltas" / "upper_000.npy").read_bytes()


@pytest.mark.parametrize(
    ("probes", "message"),
    [
        (ProbeConfig(count=4, layers=2, seed=1), "probes is"),
        (ProbeConfig(count=4, layers=2, chat=False), "template is"),
        (ProbeConfig(count=4, layers=1), "layers is"),
    ],
)
def test_deltas_on_other_probes_or_another_template_are_refused(
    config: deltas.Config, probes: ProbeConfig, message: str
) -> None:
    deltas.run(config)
    with pytest.raises(CacheMismatchError, match=message):
        deltas.run(replace(config, probes=probes))
    deltas.run(replace(config, probes=probes, name="other"))


def test_a_stronger_adapter_has_a_larger_norm(config: deltas.Config, tiny_base: Base) -> None:
    weights, _ = load_peft(config.workdir / "upper" / "upper_000")
    save_peft(weights.scaled(0.25), config.workdir / "upper" / "upper_001", base_id=tiny_base.spec.base_id)
    (config.workdir / "manifest.json").unlink()
    deltas.run(config)
    norms = {a["id"]: a["norm"] for a in read_result(config.workdir / "results" / "deltas.json")["adapters"]}
    assert all(weak < strong for weak, strong in zip(norms["upper_001"], norms["upper_000"], strict=True))


def test_without_task_files_every_task_is_a_family(config: deltas.Config) -> None:
    deltas.run(replace(config, folder=None))
    found = read_result(config.workdir / "results" / "deltas.json")
    assert [a["family"] for a in found["adapters"]] == [a["task"] for a in found["adapters"]]
    assert found["silhouette"] == {"deltas": None, "flattened weights": None, "products BA": None}
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("kind", ["generic", "mixed", "math"])
def test_every_kind_of_probe_is_built(kind: str) -> None:
    probes = ProbeConfig(kind=kind, count=5, chat=False).build()
    assert (len(probes), probes.chat) == (5, False)


def test_an_unknown_kind_of_probe_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown probe domain 'cooking'"):
        ProbeConfig(kind="cooking").build()
