"""`python -m training deltas`: measures the deltas of all adapters of a working folder, and their statistics.

The deltas are cached in `{workdir}/deltas`, one file each. The result contains their norms, the silhouettes by task
family of deltas and of weights, and a two-dimensional map of both.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llgbm.adapters.index import AdapterEntry
from llgbm.base import load_base
from llgbm.dataset import RealAdapterDataset
from llgbm.linears.frozen_linear import Storage
from llgbm.pretrained.find import BASE_0_5B
from training.adapters.adapter_split import UNKNOWN, adapters_digest, family_of, tasks_by_id
from training.adapters.delta_store import ProbeConfig, cached_delta, fill_cache, measured_by, open_deltas
from training.phases.delta_statistics import cosine_distances, delta_distances, norm_map, silhouette, tsne, weight_grams
from training.runs.fan_out import open_workers
from training.runs.log import RunLog
from training.runs.results import write_result
from training.runs.workers import RayTask
from training.tasks.format import Task


@dataclass(frozen=True)
class Config:
    """Settings of the measurement."""

    workdir: Path = Path("runs/teachers")
    """Folder of the adapters; also of the deltas and the result."""
    name: str = "deltas"
    """Folder of the cache and name of the result; choose another one for other probes."""
    folder: Path | None = Path("tasks/train")
    """Folder of task files, whose categories are the families; none makes every task its own family."""
    base: str = BASE_0_5B
    """Hub id or folder of the frozen base."""
    base_storage: Storage = "float32"
    """How the base's Linear weights are stored."""
    device: str = "cpu"
    """A torch device, cpu or cuda; on cuda set base_storage to bfloat16 or float32."""
    probes: ProbeConfig = field(default_factory=ProbeConfig)
    seed: int = 0
    """Random seed of the map."""
    ray: str | None = None
    """Ray cluster to measure on: local, auto or an address, see `docs/SCALING.md`; none uses this process."""
    ray_task: RayTask = field(default_factory=RayTask)
    ray_shard: int = 4
    """Adapters per Ray task."""


def run(config: Config) -> None:
    """Measure missing deltas, then write `{workdir}/results/{name}.json`."""
    tasks = tasks_by_id(config.folder)
    base = load_base(config.base, storage=config.base_storage, device=config.device)
    adapters = RealAdapterDataset(config.workdir, base_id=base.spec.base_id)
    with RunLog(config.workdir, "deltas", config) as log:
        meter, cache = open_deltas(config.workdir / config.name, base, config.probes)
        with open_workers(config.ray, config.ray_task, base, config.base, config.base_storage) as workers:
            shard = 1 if config.ray is None else config.ray_shard
            fill_cache(log, adapters, meter, cache, measured_by(workers, config.probes, meter.base_activation, shard))
        pairs = zip(adapters.entries, adapters, strict=True)
        deltas = torch.stack([cached_delta(cache, entry.adapter_id, weights).mean for entry, weights in pairs])
        found: dict[str, Any] = {"base": base.spec.base_id, "probes": list(config.probes.build().texts)}
        found |= statistics(
            adapters, deltas, meter.base_activation.mean, families(adapters.entries, tasks), config.seed
        )
        found["layers"] = list(meter.measurement.layers)
        made_of = {"base_revision": base.revision, "data_digest": adapters_digest(adapters)}
        path = write_result(log, config.name, config, found, **made_of)
        log.logger.info("result", file=str(path), silhouette=found["silhouette"])


def families(entries: tuple[AdapterEntry, ...], tasks: dict[str, Task]) -> list[str]:
    """The family of each adapter: its task's category, or the task itself if that is unknown."""
    found = [family_of(entry, tasks) for entry in entries]
    return [entry.task if name == UNKNOWN else name for name, entry in zip(found, entries, strict=True)]


def statistics(
    adapters: RealAdapterDataset, deltas: Tensor, base_mean: Tensor, labels: list[str], seed: int
) -> dict[str, Any]:
    """Norms, silhouettes and maps, for JSON.

    Args:
        deltas: (n, layers, hidden), means over probes.
        base_mean: (layers, hidden), mean hidden states of the plain base; relative norms are divided by its norm.
        labels: the family of each adapter.
    """
    grams = weight_grams(adapters)
    distances = {
        "deltas": delta_distances(deltas),
        "flattened weights": cosine_distances(grams.flat),
        "products BA": cosine_distances(grams.product),
    }
    norms = torch.linalg.vector_norm(deltas, dim=-1)
    relative = norms / torch.linalg.vector_norm(base_mean, dim=-1)
    return {
        "adapters": [
            {
                "id": entry.adapter_id,
                "task": entry.task,
                "family": label,
                "norm": [round(float(x), 5) for x in norm],
                "relative_norm": [round(float(x), 5) for x in share],
            }
            for entry, label, norm, share in zip(adapters.entries, labels, norms, relative, strict=True)
        ],
        "silhouette": {name: silhouette(d, labels) for name, d in distances.items()},
        "mean_cosine": {name: _mean_cosine(d) for name, d in distances.items()},
        "map": {name: tsne(d, seed=seed) for name, d in distances.items()},
        "norm_map": norm_map(adapters),
    }


def _mean_cosine(distances: Any) -> float | None:
    """Mean cosine of all pairs of different adapters; None for one adapter."""
    count = len(distances)
    return float(1 - distances.sum() / (count * (count - 1))) if count > 1 else None
