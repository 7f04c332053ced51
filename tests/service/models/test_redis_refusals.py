"""A Redis that refuses commands: the cache is degraded until a write succeeds, and the log has the code of Redis."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
import structlog
from structlog.testing import capture_logs

from service.models.embedding_cache import RedisEmbeddingCache, ResilientCache
from service.observability.metrics import Metrics
from tests.service.support.harness import free_port, wait_until
from tests.service.support.redis_server import RedisServer

Cache = tuple[ResilientCache, RedisEmbeddingCache]


@pytest.fixture(autouse=True)
def every_level_is_logged() -> None:
    structlog.reset_defaults()  # an application of an earlier test may have left only errors


def cache_over(url: str, *, timeout: float = 5.0) -> Cache:
    metrics = Metrics()
    kept = RedisEmbeddingCache(url, ttl=60, timeout=timeout, metrics=metrics)
    return ResilientCache(lambda: kept, max_items=1, retry_after=0.0, metrics=metrics, check=kept.probe), kept


def read_only(client: redis.Redis) -> Callable[[], object]:
    client.execute_command("REPLICAOF", "127.0.0.1", "1")  # type: ignore[no-untyped-call]
    return lambda: client.execute_command("REPLICAOF", "NO", "ONE")  # type: ignore[no-untyped-call]


def out_of_memory(client: redis.Redis) -> Callable[[], object]:
    client.config_set("maxmemory", "1")
    return lambda: client.config_set("maxmemory", "0")


def not_permitted(client: redis.Redis) -> Callable[[], object]:
    client.execute_command("ACL", "SETUSER", "default", "-set")  # type: ignore[no-untyped-call]
    return lambda: client.execute_command("ACL", "SETUSER", "default", "+set")  # type: ignore[no-untyped-call]


def replica_without_master(client: redis.Redis) -> Callable[[], object]:
    client.config_set("replica-serve-stale-data", "no")
    return read_only(client)


@pytest.mark.parametrize(
    ("refuse", "word"),
    [
        (read_only, "READONLY"),
        (replica_without_master, "READONLY"),  # and MASTERDOWN for look-ups
        (out_of_memory, "OOM"),
        (not_permitted, "NOPERM"),
    ],
)
def test_degraded_until_a_write_succeeds(
    redis_server: RedisServer, refuse: Callable[[redis.Redis], Callable[[], object]], word: str
) -> None:
    cache, kept = cache_over(redis_server.url)
    cache.set_many({"a": b"1"})
    assert cache.current_problem() is None
    with redis_server.client() as client, capture_logs() as logs:
        mend = refuse(client)
        cache.set_many({"b": b"2"})
        for _ in range(3):  # neither a successful look-up nor a health check ends it
            cache.get_many(["a"])
            assert cache.current_problem() == "refused"
        assert [entry["error"] for entry in logs if entry["event"] == "embedding_cache_failed"] == [word]
        mend()
        assert cache.current_problem() is None
        cache.set_many({"b": b"2"})
        assert cache.get_many(["a", "b"]) == [b"1", b"2"]
    kept.close()


def test_a_disk_that_takes_no_snapshot(tmp_path: Path, redis_server: RedisServer) -> None:
    """MISCONF, the answer of Redis after a failed snapshot."""
    folder = tmp_path / "gone"
    folder.mkdir()
    server = RedisServer(folder)
    server.start()
    try:
        cache, kept = cache_over(server.url)
        cache.set_many({"a": b"1"})
        shutil.rmtree(folder)
        with server.client() as client, capture_logs() as logs:
            client.config_set("save", "3600 1")
            client.bgsave()
            wait_until(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err")
            cache.set_many({"b": b"2"})
            assert cache.get_many(["a"]) == [b"1"]
            assert cache.current_problem() == "refused"
            assert [entry["error"] for entry in logs if entry["event"] == "embedding_cache_failed"] == ["MISCONF"]
            client.config_set("stop-writes-on-bgsave-error", "no")
            assert cache.current_problem() is None
        kept.close()
    finally:
        server.stop()


def test_a_cluster_that_has_no_slots(tmp_path: Path, redis_server: RedisServer) -> None:
    server = RedisServer(tmp_path, "--cluster-enabled", "yes", "--cluster-port", str(free_port()))
    server.start()
    try:
        cache, kept = cache_over(server.url)
        with capture_logs() as logs:
            assert cache.get_many(["a"]) == [None]
            assert cache.current_problem() == "refused"
        assert logs[0]["error"] == "CLUSTERDOWN"
        kept.close()
    finally:
        server.stop()


def test_a_script_that_does_not_end(redis_server: RedisServer) -> None:
    cache, kept = cache_over(redis_server.url)

    def endless() -> None:
        with redis_server.client() as client, pytest.raises(redis.exceptions.ResponseError):
            client.eval("while true do end", 0)

    with redis_server.client() as client, capture_logs() as logs:
        client.config_set("lua-time-limit", "10")
        thread = threading.Thread(target=endless)
        thread.start()
        time.sleep(0.3)
        assert cache.current_problem() == "refused"
        assert logs[0]["error"] == "BUSY"
        client.script_kill()
        thread.join()
    assert cache.current_problem() is None
    kept.close()
