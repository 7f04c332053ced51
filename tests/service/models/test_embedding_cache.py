from __future__ import annotations

import socket
import threading
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llgbm.conditioning.embedding_cache import MemoryEmbeddingCache, SqliteEmbeddingCache
from llgbm.errors import EmbeddingCacheError
from service.models.embedding_cache import RedisEmbeddingCache, ResilientCache
from service.observability.metrics import Metrics
from tests.service.support.redis_server import RedisServer

KEYS = ["a", "b", "c"]


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


def errors(metrics: Metrics, kind: str) -> float:
    return metrics.registry.get_sample_value("llgbm_embedding_cache_errors_total", {"kind": kind}) or 0.0


def over_redis(
    url: str, metrics: Metrics, *, timeout: float = 5.0, retry_after: float = 0.0
) -> tuple[ResilientCache, RedisEmbeddingCache]:
    redis = RedisEmbeddingCache(url, ttl=60, timeout=timeout, metrics=metrics)
    cache = ResilientCache(lambda: redis, max_items=1, retry_after=retry_after, metrics=metrics, check=redis.probe)
    return cache, redis


class Broken:
    """A cache that fails a given number of times."""

    def __init__(self, failures: int = 10**9) -> None:
        self.failures, self.calls, self.inner = failures, 0, MemoryEmbeddingCache(100)

    def _maybe_fail(self) -> None:
        self.calls += 1
        if self.failures > 0:
            self.failures -= 1
            raise EmbeddingCacheError("broken")

    def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        self._maybe_fail()
        return self.inner.get_many(keys)

    def set_many(self, items: Mapping[str, bytes]) -> None:
        self._maybe_fail()
        self.inner.set_many(items)

    def close(self) -> None:
        pass


@given(
    st.lists(st.sampled_from("abcdef"), max_size=6), st.dictionaries(st.sampled_from("abcdef"), st.binary(max_size=4))
)
def test_it_is_a_cache_whatever_works_below_it(asked: list[str], items: dict[str, bytes]) -> None:
    for failures in (0, 1, 10**9):
        below = Broken(failures)
        cache = ResilientCache(partial(_identity, below), max_items=100, retry_after=0, metrics=Metrics())
        cache.set_many(items)
        assert cache.get_many(asked) == [items.get(key) for key in asked]


def _identity(below: Broken) -> Broken:
    return below


def test_what_memory_forgot_comes_from_below_and_the_metric_tells_them_apart(metrics: Metrics, tmp_path: Path) -> None:
    cache = ResilientCache(
        lambda: SqliteEmbeddingCache(tmp_path / "c.sqlite"), max_items=1, retry_after=0, metrics=metrics
    )
    cache.set_many({"a": b"1"})
    cache.set_many({"b": b"2"})
    assert cache.get_many(["b", "a", "x"]) == [b"2", b"1", None]
    for outcome in ("memory", "kept", "miss"):
        assert metrics.registry.get_sample_value("llgbm_embedding_cache_total", {"outcome": outcome}) == 1
    cache.close()


def test_a_failure_is_counted_shown_and_over_when_it_is_over(metrics: Metrics) -> None:
    below = Broken(failures=2)
    cache = ResilientCache(lambda: below, max_items=1, retry_after=0, metrics=metrics)
    assert cache.get_many(KEYS) == [None] * 3
    assert cache.problem == "file"
    cache.set_many({"a": b"1"})
    assert errors(metrics, "file") == 2
    cache.set_many({"a": b"1"})
    assert cache.problem is None


def test_after_a_failure_it_is_left_alone_for_a_while(metrics: Metrics) -> None:
    below = Broken()
    cache = ResilientCache(lambda: below, max_items=1, retry_after=60, metrics=metrics)
    for _ in range(5):
        cache.get_many(KEYS)
    assert below.calls == 1
    assert errors(metrics, "skipped") == 4


def test_a_cache_that_cannot_be_opened_is_opened_later(metrics: Metrics, tmp_path: Path) -> None:
    place = tmp_path / "folder"
    place.write_text("in the way")
    cache = ResilientCache(
        lambda: SqliteEmbeddingCache(place / "c.sqlite"), max_items=1, retry_after=0, metrics=metrics
    )
    cache.set_many({"a": b"1"})
    assert cache.current_problem() == "file"
    place.unlink()
    cache.set_many({"b": b"2"})
    assert cache.current_problem() is None
    cache.close()


def test_redis_keeps_what_it_was_given_for_as_long_as_it_was_told(redis_server: RedisServer, metrics: Metrics) -> None:
    cache, redis = over_redis(redis_server.url, metrics)
    content = {f"key-{i}": bytes([i]) * 1536 for i in range(50)}
    cache.set_many(content)
    other, other_redis = over_redis(redis_server.url, Metrics())  # another process
    assert other.get_many([*content, "none"]) == [*content.values(), None]
    with redis_server.client() as client:
        assert 0 < client.ttl("key-7") <= 60
    redis.close()
    other_redis.close()


@pytest.mark.parametrize("rubbish", [b"", b"x", b"LGE1", b"LGE1\0\0\0\0abc", b"\x80\x04pickle", b"LGE1" * 1000])
def test_rubbish_is_a_miss_and_is_replaced(redis_server: RedisServer, metrics: Metrics, rubbish: bytes) -> None:
    with redis_server.client() as client:
        client.set("a", rubbish)
        client.lpush("b", "a list, not a string")
    cache, redis = over_redis(redis_server.url, metrics)
    assert cache.get_many(["a", "b"]) == [None, None]
    assert errors(metrics, "rubbish") == 1
    cache.set_many({"a": b"good", "b": b"too"})
    fresh, fresh_redis = over_redis(redis_server.url, Metrics())
    assert fresh.get_many(["a", "b"]) == [b"good", b"too"]
    redis.close()
    fresh_redis.close()


def test_killed_and_started_again(redis_server: RedisServer, metrics: Metrics) -> None:
    cache, redis = over_redis(redis_server.url, metrics)
    cache.set_many({"a": b"1", "b": b"2"})
    assert cache.current_problem() is None
    redis_server.stop()
    assert cache.get_many(["a", "x"]) == [None, None]
    assert cache.current_problem() == "unreachable"
    redis_server.start()
    assert cache.current_problem() is None
    cache.set_many({"a": b"1", "b": b"2"})
    assert cache.get_many(["a", "b"]) == [b"1", b"2"]
    redis.close()


def test_a_server_that_does_not_answer_costs_the_timeout_once(redis_server: RedisServer, metrics: Metrics) -> None:
    cache, redis = over_redis(redis_server.url, metrics, timeout=0.05, retry_after=60)
    cache.set_many({"a": b"1"})
    redis_server.freeze()
    calls = 200
    start = time.monotonic()
    for _ in range(calls):
        assert cache.get_many(["x"]) == [None]
    assert time.monotonic() - start < calls * 0.05  # most calls did not wait
    assert cache.problem == "timeout"
    assert errors(metrics, "timeout") == 1
    redis_server.thaw()
    redis.close()


@pytest.mark.parametrize("password", ["", ":wrong@"])
def test_a_server_that_refuses_us(redis_server: RedisServer, metrics: Metrics, password: str) -> None:
    cache, redis = over_redis(f"redis://{password}127.0.0.1:{redis_server.port}/0", metrics)
    assert cache.get_many(KEYS) == [None] * 3
    assert cache.problem == "refused"
    redis.close()


def test_a_server_without_memory_refuses_to_keep_but_still_answers(redis_server: RedisServer, metrics: Metrics) -> None:
    cache, redis = over_redis(redis_server.url, metrics)
    cache.set_many({"a": b"1", "b": b"2"})
    with redis_server.client() as client:
        client.config_set("maxmemory", "1")
    cache.set_many({"c": b"3"})
    assert cache.problem == "refused"
    assert cache.get_many(["a"]) == [b"1"]
    redis.close()


def test_something_that_is_no_redis_is_survived(metrics: Metrics) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def talk() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(100)
                    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n\xff\xfe")

        threading.Thread(target=talk, daemon=True).start()
        cache, redis = over_redis(f"redis://127.0.0.1:{listener.getsockname()[1]}/0", metrics)
        assert cache.get_many(KEYS) == [None] * 3
        assert cache.problem in ("rubbish", "unreachable")
        redis.close()
