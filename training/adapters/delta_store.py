"""The delta cache of a folder of adapters: probe settings, opening the cache, and measuring missing deltas."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from llgbm.adapters.peft_io import content_digest
from llgbm.base import Base
from llgbm.config import ModelSpec
from llgbm.dataset import Measure, RealAdapterDataset, measure_deltas
from llgbm.delta import DeltaCache, DeltaMeter, measurement_of
from llgbm.errors import CacheMismatchError
from llgbm.lora import LoRAWeights
from llgbm.measuring.measurement import Activation, Delta
from llgbm.measuring.probe_encoding import spread_layers
from llgbm.probes import DOMAINS, ProbeSet, create_domain_probes, create_generic_probes, create_mixed_probes
from training.runs.log import RunLog
from training.runs.workers import Workers


def open_deltas(folder: Path, base: Base, probes: ProbeConfig) -> tuple[DeltaMeter, DeltaCache]:
    """Open or create the cache of a folder, with a meter for the same measurement.

    Raises:
        CacheMismatchError: the folder contains deltas of another measurement.
    """
    layers = probes.layers_of(base.spec)
    cache = DeltaCache(folder, measurement_of(base, probes.build(), layers))
    meter = DeltaMeter(base, probes.build(), layers, cache.get_base())
    cache.put_base(meter.base_activation)
    return meter, cache


def fill_cache(
    log: RunLog, adapters: RealAdapterDataset, meter: DeltaMeter, cache: DeltaCache, measure: Measure | None = None
) -> None:
    """Measure the missing deltas and show progress; `measure` as in `llgbm.dataset.measure_deltas`."""
    with log.progress("deltas", total=len(adapters)) as progress:
        for done, adapter_id in enumerate(measure_deltas(adapters, meter, cache, measure), 1):
            progress.update(done, adapter_id)


def measured_by(workers: Workers, probes: ProbeConfig, activation: Activation, shard: int) -> Measure:
    """A `Measure` that distributes the adapters over workers, `shard` adapters a call.

    Args:
        activation: hidden states of the plain base, which are subtracted from those of every adapter.
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
        CacheMismatchError: the delta is not in the cache, or was measured with other weights under this id.
    """
    delta = cache.get(adapter_id, adapter_digest=content_digest(weights))
    if delta is None:
        raise CacheMismatchError(f"{cache.folder} has no delta of {adapter_id}; run the command deltas")
    return delta


@dataclass(frozen=True)
class ProbeConfig:
    """Probes, their format, and the layers whose hidden states are read."""

    kind: str = "mixed"
    """generic, mixed, or one domain such as math."""
    count: int = 12
    """Number of probes."""
    domains: tuple[str, ...] = DOMAINS
    """Domains of mixed probes, in addition to the generic texts."""
    chat: bool = True
    """Format each probe as a user turn of the chat template; otherwise use the bare text."""
    max_length: int = 192
    """Maximum length of a probe in tokens, including the template."""
    seed: int = 0
    """Random seed for drawing mixed probes."""
    layers: int = 2
    """Number of layers to read, evenly spaced and ending with the last. 1 reads only the last, as in the paper."""

    def build(self) -> ProbeSet:
        """The probes.

        Raises:
            ConfigError: the kind or a domain is unknown, or there are fewer texts than `count`.
        """
        if self.kind == "generic":
            return create_generic_probes(self.count, chat=self.chat, max_length=self.max_length)
        if self.kind == "mixed":
            return create_mixed_probes(
                self.count, domains=self.domains, seed=self.seed, chat=self.chat, max_length=self.max_length
            )
        return create_domain_probes(self.kind, self.count, chat=self.chat, max_length=self.max_length)

    def layers_of(self, model: ModelSpec) -> tuple[int, ...]:
        """Indices of the layers that are read.

        Raises:
            ConfigError: the base has fewer layers.
        """
        return spread_layers(model, self.layers)
