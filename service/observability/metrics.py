"""The Prometheus metrics of one application, in a registry of its own.

Labels are routes, adapter ids and fixed words; never prompts, user-chosen names or keys. `llgbm_lora_requests_info` has
the format that inference gateways read from vLLM (`vllm:lora_requests_info`): running and waiting adapters as labels,
the time as its value.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_JOB_SECONDS = (1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5)


class Metrics:
    """All metrics of the service. Thread-safe."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        self.http_requests = Counter(
            "llgbm_http_requests", "Answers by route and status", ["method", "route", "status"], registry=registry
        )
        self.http_seconds = Histogram(
            "llgbm_http_request_seconds",
            "From a request's head to the end of its answer",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.queue_depth = Gauge("llgbm_queue_depth", "Rows that wait for a place in the batch", registry=registry)
        self.batch_rows = Gauge("llgbm_batch_rows", "Rows in the batch", registry=registry)
        self.batch_adapters = Gauge("llgbm_batch_adapters", "Distinct adapters in the batch", registry=registry)
        self.first_token = Histogram(
            "llgbm_time_to_first_token_seconds", "Admission to first token", buckets=_SECONDS, registry=registry
        )
        self.next_token = Histogram(
            "llgbm_inter_token_seconds", "Token to token of one row", buckets=_TOKEN_SECONDS, registry=registry
        )
        self.prompt_tokens = Counter("llgbm_prompt_tokens", "Prompt tokens", registry=registry)
        self.known_tokens = Counter(
            "llgbm_known_prompt_tokens",
            "Prompt tokens that were not read again, because another row with the same adapter had read them",
            registry=registry,
        )
        self.completion_tokens = Counter("llgbm_completion_tokens", "Tokens generated", registry=registry)
        self.finished = Counter("llgbm_rows_finished", "Rows by how they ended", ["reason"], registry=registry)
        self.rejected = Counter("llgbm_rejected", "Requests refused for load or limits", ["reason"], registry=registry)
        self.generation_seconds = Histogram(
            "llgbm_adapter_generation_seconds",
            "Making an adapter, by stage: encode, generate, store, total",
            ["stage"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.adapters = Counter(
            "llgbm_adapters",
            "Adapters by outcome: made, existed, loaded, composed, deleted",
            ["outcome"],
            registry=registry,
        )
        self.resident = Gauge("llgbm_adapters_resident", "Adapters in memory", registry=registry)
        self.resident_bytes = Gauge("llgbm_adapters_resident_bytes", "Bytes of adapters in memory", registry=registry)
        self.in_use = Gauge("llgbm_adapters_in_use", "Adapters with at least one reference", registry=registry)
        self.adapter_cache = Counter(
            "llgbm_adapter_cache", "Where an adapter was found: memory, disk, nowhere", ["where"], registry=registry
        )
        self.embedding_cache = Counter(
            "llgbm_embedding_cache",
            "Text embeddings looked up, by outcome: memory, kept, miss",
            ["outcome"],
            registry=registry,
        )
        self.embedding_errors = Counter(
            "llgbm_embedding_cache_errors",
            "Failed exchanges with Redis or the file, by kind: unreachable, timeout, rubbish, refused, file, skipped",
            ["kind"],
            registry=registry,
        )
        self.jobs = Counter(
            "llgbm_jobs_ended",
            "Fine-tuning jobs by outcome: succeeded, failed, cancelled",
            ["status"],
            registry=registry,
        )
        self.jobs_now = Gauge(
            "llgbm_jobs", "Fine-tuning jobs of the store that wait or run", ["status"], registry=registry
        )
        self.job_seconds = Histogram(
            "llgbm_job_seconds", "From start to end of a job's process", buckets=_JOB_SECONDS, registry=registry
        )
        self.job_loss = Gauge("llgbm_job_loss", "Training loss of the job's last step, nats", registry=registry)
        self._lora = _LoraRequestsInfo()
        registry.register(self._lora)

    def on_http(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a response. Unknown methods are counted as OTHER, so that clients cannot create new series."""
        self.http_requests.labels(method if method in _METHODS else "OTHER", route, status).inc()
        self.http_seconds.labels(route).observe(seconds)

    def on_load(self, waiting: list[str | None], running: list[str | None], max_batch: int) -> None:
        """Record the adapter ids of waiting and running rows; None is the plain base."""
        self.queue_depth.set(len(waiting))
        self.batch_rows.set(len(running))
        names = {name for name in running if name is not None}
        self.batch_adapters.set(len(names))
        self._lora.update(names, {name for name in waiting if name is not None}, max_batch)

    def render(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)


class _LoraRequestsInfo(Collector):
    """One sample, made when it is read, so that no series of former adapters remain."""

    def __init__(self) -> None:
        self._state: tuple[str, str, str] = ("", "", "0")

    def update(self, running: set[str], waiting: set[str], max_lora: int) -> None:
        self._state = (",".join(sorted(running)), ",".join(sorted(waiting)), str(max_lora))

    def collect(self) -> Iterable[Metric]:
        running, waiting, max_lora = self._state
        family = GaugeMetricFamily(
            "llgbm_lora_requests_info",
            "Adapters that run and wait; the value is the time of reading",
            labels=["max_lora", "running_lora_adapters", "waiting_lora_adapters"],
        )
        family.add_metric([max_lora, running, waiting], time.time())
        yield family
