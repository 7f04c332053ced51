"""The teachers' deltas of a working folder: opened under the right measurement, filled where something is missing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from llgbm.adapters.peft_io import content_digest
from llgbm.base import Base
from llgbm.dataset import Measure, RealAdapterDataset, measure_deltas
from llgbm.delta import DeltaCache, DeltaMeter, measurement_of
from llgbm.errors import CacheMismatchError
from llgbm.lora import LoRAWeights
from llgbm.matching.measurement import Activation, Delta
from training.adapters.probe_config import ProbeConfig
from training.runs.log import RunLog
from training.runs.workers import Workers


def open_deltas(folder: Path, base: Base, probes: ProbeConfig) -> tuple[DeltaMeter, DeltaCache]:
    """The cache of a folder, made if it is not there, and a meter of the same measurement.

    Raises:
        CacheMismatchError: the folder holds deltas of another measurement.
    """
    layers = probes.layers_of(base.spec)
    cache = DeltaCache(folder, measurement_of(base, probes.build(), layers))
    meter = DeltaMeter(base, probes.build(), layers, cache.get_base())
    cache.put_base(meter.base_activation)
    return meter, cache


def fill_cache(
    log: RunLog, adapters: RealAdapterDataset, meter: DeltaMeter, cache: DeltaCache, measure: Measure | None = None
) -> None:
    """Measure the deltas that a cache lacks, with a bar; `measure` as in `llgbm.dataset.measure_deltas`."""
    with log.progress("deltas", total=len(adapters)) as progress:
        for done, adapter_id in enumerate(measure_deltas(adapters, meter, cache, measure), 1):
            progress.update(done, adapter_id)


def measured_by(workers: Workers, probes: ProbeConfig, activation: Activation, shard: int) -> Measure:
    """A `Measure` that hands the adapters to workers, `shard` of them at a time.

    Args:
        activation: of the plain base, from which all deltas are taken.
    """

    def measure(missing: Iterable[tuple[str, LoRAWeights]]) -> Iterator[tuple[str, Tensor]]:
        adapters = iter(missing)
        shards = iter(lambda: tuple(islice(adapters, shard)), ())
        work = partial(_deltas, probes=probes, activation=activation)
        for done, deltas in workers.map(work, shards):
            yield from zip((adapter_id for adapter_id, _ in done), deltas, strict=True)

    return measure


def _deltas(
    base: Base, shard: Sequence[tuple[str, LoRAWeights]], probes: ProbeConfig, activation: Activation
) -> list[Tensor]:
    meter = DeltaMeter(base, probes.build(), probes.layers_of(base.spec), activation)
    with torch.no_grad():
        return [meter.deltas([weights])[0] for _, weights in shard]


def cached_delta(cache: DeltaCache, adapter_id: str, weights: LoRAWeights) -> Delta:
    """An adapter's delta.

    Raises:
        CacheMismatchError: it is not in the cache, or was measured on other weights of this name.
    """
    delta = cache.get(adapter_id, adapter_digest=content_digest(weights))
    if delta is None:
        raise CacheMismatchError(f"{cache.folder} has no delta of {adapter_id}; run the command deltas")
    return delta
