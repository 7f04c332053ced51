"""The adapters in memory: an LRU cache, limited by bytes, over the folder store.

An adapter in use has references and is never evicted. One without references may be evicted, and is read again when
needed. Reading is single flight: simultaneous requests for one adapter read it once. Blocks; for worker threads.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import structlog

from llgbm.config import ModelSpec
from llgbm.errors import AdapterMismatchError
from llgbm.lora import LoRAWeights
from service.adapters.files import AdapterFiles
from service.adapters.records import other_base
from service.observability.metrics import Metrics

_log = structlog.get_logger("service.adapters")


@dataclass(eq=False)
class _Entry:
    weights: LoRAWeights
    references: int = 0


class AdapterReference:
    """A request's adapter, without its tensors.

    Attributes:
        modules: number of modules with a nonzero update.
    """

    def __init__(self, identity: str, modules: int) -> None:
        self.id, self.modules = identity, modules

    @property
    def weights(self) -> LoRAWeights | None:
        """The tensors, or None if the reference does not keep them in memory."""
        return None

    def release(self) -> None:
        """Release the reference. May be called more than once."""


class Lease(AdapterReference):
    """A reference that keeps an adapter's tensors in memory until `release`."""

    def __init__(self, identity: str, weights: LoRAWeights, release: Callable[[], None]) -> None:
        super().__init__(identity, len(weights.spec.modules))
        self._weights = weights
        self._release: Callable[[], None] | None = release

    @property
    def weights(self) -> LoRAWeights:
        """The tensors."""
        return self._weights

    def release(self) -> None:
        """Release the reference. May be called more than once."""
        release, self._release = self._release, None
        if release is not None:
            release()


class AdapterStore:
    """An LRU cache of tensors over `files`.

    Args:
        files: the folder store.
        base: shape of the base; adapters that do not fit it are refused.
        max_bytes: limit of tensors in memory, in bytes. Adapters in use may exceed it.
        strict_base: refuse an adapter that names another base, instead of a warning in the log.
    """

    def __init__(
        self, files: AdapterFiles, base: ModelSpec, *, max_bytes: int, metrics: Metrics, strict_base: bool = False
    ) -> None:
        self._strict_base = strict_base
        self.files, self._base, self._max_bytes, self._metrics = files, base, max_bytes, metrics
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._lock = threading.Lock()
        self._reading: dict[str, threading.Lock] = {}

    def keep(self, identity: str, weights: LoRAWeights) -> None:
        """Put a new adapter into memory."""
        with self._lock:
            if identity not in self._entries:
                self._entries[identity] = _Entry(weights)
            self._entries.move_to_end(identity)
            self._evict()

    def acquire(self, identity: str) -> Lease:
        """A reference to an adapter; it is read from disk if it is not in memory.

        Raises:
            FileNotFoundError: the adapter does not exist.
            AdapterDamagedError, AdapterFormatError: its files are damaged.
            AdapterMismatchError: it does not fit the base.
        """
        if not self.files.exists(identity):  # also for an adapter in memory: another process may have deleted it
            self.forget(identity)
            self._metrics.adapter_cache.labels("nowhere").inc()
            raise FileNotFoundError(f"there is no adapter {identity}")
        lease = self._from_memory(identity)
        if lease is not None:
            self._metrics.adapter_cache.labels("memory").inc()
            return lease
        with self._single_flight(identity):
            lease = self._from_memory(identity)
            if lease is None:
                weights = self.files.read(identity)
                weights.spec.require_fits(self._base)
                self._require_base(identity)
                self._metrics.adapter_cache.labels("disk").inc()
                with self._lock:
                    # keep an entry that another thread may have added meanwhile, with its references
                    self._entries.setdefault(identity, _Entry(weights))
                    lease = self._reference(identity)
                    self._evict()
        return lease

    def _require_base(self, identity: str) -> None:
        record = self.files.record(identity)
        warning = None if record is None else other_base(record.base, self._base.base_id)
        if warning is None:
            return
        if self._strict_base:
            raise AdapterMismatchError(f"{warning} (LLGBM_STRICT_BASE)")
        _log.warning("adapter_of_another_base", adapter_id=identity, reason=warning)

    @contextmanager
    def _single_flight(self, identity: str) -> Iterator[None]:
        with self._lock:
            gate = self._reading.setdefault(identity, threading.Lock())
        with gate:
            try:
                yield
            finally:
                with self._lock:
                    self._reading.pop(identity, None)

    def _from_memory(self, identity: str) -> Lease | None:
        with self._lock:
            return self._reference(identity) if identity in self._entries else None

    def _reference(self, identity: str) -> Lease:
        entry = self._entries[identity]
        entry.references += 1
        self._entries.move_to_end(identity)
        self._report()
        return Lease(identity, entry.weights, lambda: self._dereference(entry))

    def _dereference(self, entry: _Entry) -> None:
        with self._lock:
            entry.references -= 1
            self._evict()

    def forget(self, identity: str) -> None:
        """Drop an adapter from memory; rows that use it keep its tensors."""
        with self._lock:
            self._entries.pop(identity, None)
            self._report()

    def delete(self, identity: str, names: Iterable[str] | None = None) -> bool:
        """Delete an adapter from memory and, with its names, from disk; False if it did not exist.

        Args:
            names: its names; None searches the whole store for them.
        """
        self.forget(identity)
        return self.files.delete(identity, names)

    def _evict(self) -> None:
        size = sum(entry.weights.num_bytes for entry in self._entries.values())
        for identity in list(self._entries):
            if size <= self._max_bytes:
                break
            entry = self._entries[identity]
            if entry.references == 0:
                size -= entry.weights.num_bytes
                del self._entries[identity]
        self._report()

    def _report(self) -> None:
        self._metrics.resident.set(len(self._entries))
        self._metrics.resident_bytes.set(sum(e.weights.num_bytes for e in self._entries.values()))
        self._metrics.in_use.set(sum(e.references > 0 for e in self._entries.values()))

    @property
    def resident(self) -> dict[str, int]:
        """Adapters in memory and their reference counts, least recently used first."""
        with self._lock:
            return {identity: entry.references for identity, entry in self._entries.items()}
