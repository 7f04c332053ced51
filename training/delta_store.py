"""The teachers' deltas of a working folder: opened under the right measurement, filled where something is missing."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from llgbm.adapter_index import AdapterEntry
from llgbm.base import Base
from llgbm.dataset import RealAdapterDataset, measure_deltas
from llgbm.delta import DeltaCache, DeltaMeter, measurement_of
from llgbm.errors import CacheMismatchError
from training.probe_config import ProbeConfig
from training.runlog import RunLog


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


def fill_cache(log: RunLog, adapters: RealAdapterDataset, meter: DeltaMeter, cache: DeltaCache) -> None:
    """Measure the deltas that a cache lacks, with a bar."""
    with log.progress("deltas", total=len(adapters)) as progress:
        for done, adapter_id in enumerate(measure_deltas(adapters, meter, cache), 1):
            progress.update(done, adapter_id)


def cached_delta(cache: DeltaCache, entry: AdapterEntry) -> Tensor:
    """The mean over probes of an adapter's delta, (layers, hidden).

    Raises:
        CacheMismatchError: it is not in the cache.
    """
    delta = cache.get(entry.adapter_id)
    if delta is None:
        raise CacheMismatchError(f"{cache.folder} has no delta of {entry.adapter_id}; run the command deltas")
    return delta.mean
