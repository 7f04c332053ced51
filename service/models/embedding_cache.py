"""Text embeddings in Redis, shared by several processes, and a wrapper that keeps cache failures from failing requests.

Redis may be slow, down, restarted or hold invalid data; a file may be damaged or its disk full. A look-up then finds
nothing, the request continues, and a metric, a log line and `problem` report the failure. After a failure Redis is not
asked for a while, so that requests do not wait for a dead server.

Both caches block for at most the timeout, and run in the thread of the encoder. The encoder defines keys and content.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading
import time
import zlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import structlog
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, BusyLoadingError, InvalidResponse, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from llgbm.conditioning.embedding_cache import EmbeddingCache, MemoryEmbeddingCache
from llgbm.errors import EmbeddingCacheError
from service.observability.metrics import Metrics

_T = TypeVar("_T")
_MAGIC = b"LGE1"
_PROBE_KEY = "llgbm:embedding:probe"
"""Has the prefix of the embeddings, for Redis users that may write no other keys."""
_PROBE_SECONDS = 60
_ERROR_WORD = re.compile(r"(?:.* caused error: \(['\"])?([A-Z]{3,}) ", re.DOTALL)  # in a pipeline, after the command
_log = structlog.get_logger("service.embedding_cache")


class RedisEmbeddingCache:
    """Implements `llgbm.conditioning.embedding_cache.EmbeddingCache` over Redis.

    A value is a magic word, the CRC32 of the content, and the content; other values are ignored. The exchanges run in
    an event loop in their own thread, so that every look-up ends after the timeout, even if it waits for the DNS.

    Args:
        url: redis://[:password@]host:port/db; rediss:// and unix:// work too.
        ttl: seconds that Redis keeps an entry.
        timeout: seconds for one call, connecting included.
    """

    def __init__(self, url: str, *, ttl: int, timeout: float, metrics: Metrics) -> None:
        self._redis = Redis.from_url(url, retry=Retry(NoBackoff(), 0))
        self._ttl, self._timeout, self._metrics = ttl, timeout, metrics
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="llgbm-redis", daemon=True)
        self._thread.start()

    def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        """The content of each key, or None if missing; one exchange for all."""
        if not keys:
            return []
        values: list[Any] = self._result(self._redis.mget(list(keys)))
        return [self._unpack(value) for value in values]

    def set_many(self, items: Mapping[str, bytes]) -> None:
        """Keep the contents, each with the time to live; one exchange for all."""

        async def keep() -> None:
            async with self._redis.pipeline(transaction=False) as pipe:
                for key, content in items.items():
                    pipe.set(key, _pack(content), ex=self._ttl)
                await pipe.execute()

        self._result(keep())

    def probe(self) -> None:
        """Raise an exception if the server has a problem. Writes, because a server may refuse only writes."""
        self._result(self._redis.set(_PROBE_KEY, b"", ex=_PROBE_SECONDS))

    def close(self) -> None:
        """Close the connections."""
        if self._loop.is_closed():
            return
        with contextlib.suppress(Exception):  # the server may be down already
            self._result(self._redis.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _result(self, exchange: Awaitable[_T]) -> _T:
        async def in_time() -> _T:
            async with asyncio.timeout(self._timeout):
                return await exchange

        return asyncio.run_coroutine_threadsafe(in_time(), self._loop).result()

    def _unpack(self, packed: bytes | None) -> bytes | None:
        if packed is None:
            return None
        content = packed[8:]
        if packed[:4] == _MAGIC and packed[4:8] == zlib.crc32(content).to_bytes(4, "big"):
            return content
        self._metrics.embedding_errors.labels("rubbish").inc()
        _log.warning("embedding_rubbish", bytes=len(packed))
        return None


class PersistentCache(EmbeddingCache, Protocol):
    """A cache with an open resource."""

    def close(self) -> None:
        """Close it."""
        ...


class ResilientCache:
    """Memory in front of a persistent cache; failures of the latter have no effect. Implements `EmbeddingCache`.

    Args:
        open_persistent: opens the persistent cache at first use, and again if that failed.
        max_items: entries in memory.
        retry_after: seconds without the persistent cache after a failure.
        check: raises if the persistent cache cannot be reached or written to; None for no check.

    Attributes:
        problem: the kind of the persistent cache's current failure; None if it works.
    """

    def __init__(
        self,
        open_persistent: Callable[[], PersistentCache],
        *,
        max_items: int,
        retry_after: float,
        metrics: Metrics,
        check: Callable[[], None] | None = None,
    ) -> None:
        self._open_persistent, self._retry_after, self._check = open_persistent, retry_after, check
        self._memory, self._metrics = MemoryEmbeddingCache(max_items), metrics
        self._persistent: PersistentCache | None = None
        self._closed_until = 0.0
        self._refuses_writes = False
        self.problem: str | None = None

    def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        """The content of each key, or None if missing or if the persistent cache fails. Never raises."""
        found = self._memory.get_many(keys)
        missing = [key for key, value in zip(keys, found, strict=True) if value is None]
        kept: dict[str, bytes] = {}
        if missing:
            values = self._try(lambda persistent: persistent.get_many(missing)) or [None] * len(missing)
            kept = {key: value for key, value in zip(missing, values, strict=True) if value is not None}
            self._memory.set_many(kept)
        outcomes = {"memory": len(keys) - len(missing), "kept": len(kept), "miss": len(missing) - len(kept)}
        for outcome, count in outcomes.items():
            self._metrics.embedding_cache.labels(outcome).inc(count)
        return [kept.get(key) if value is None else value for key, value in zip(keys, found, strict=True)]

    def set_many(self, items: Mapping[str, bytes]) -> None:
        """Keep the contents, at least in memory. Never raises."""
        self._memory.set_many(items)
        if items:
            self._try(lambda persistent: persistent.set_many(items), writes=True)

    def current_problem(self) -> str | None:
        """`problem`, after a check of the persistent cache. Blocks for at most its timeout."""
        check = self._check
        if check is not None and time.monotonic() >= self._closed_until:
            self._try(lambda _: check(), writes=True)
        return self.problem

    def close(self) -> None:
        """Close the persistent cache."""
        if self._persistent is not None:
            self._persistent.close()

    def _try(self, action: Callable[[EmbeddingCache], _T], *, writes: bool = False) -> _T | None:
        if time.monotonic() < self._closed_until:
            self._metrics.embedding_errors.labels("skipped").inc()
            return None
        try:
            if self._persistent is None:
                self._persistent = self._open_persistent()
            result = action(self._persistent)
        except Exception as error:  # any failure: a cache must not fail a request
            self._failed(error, writes)
            return None
        if writes or not self._refuses_writes:  # a successful look-up does not show that writes work
            if self.problem is not None:
                _log.info("embedding_cache_back")
            self.problem, self._refuses_writes = None, False
        return result

    def _failed(self, error: Exception, writes: bool) -> None:
        kind = _kind(error)
        self._refuses_writes = self._refuses_writes or writes
        self._metrics.embedding_errors.labels(kind).inc()
        self._closed_until = time.monotonic() + self._retry_after
        if self.problem is None:  # log once per outage; the metric counts all failures
            _log.warning("embedding_cache_failed", kind=kind, error=_code(error), again_in=self._retry_after)
        self.problem = kind


def _pack(content: bytes) -> bytes:
    return _MAGIC + zlib.crc32(content).to_bytes(4, "big") + content


def _code(error: Exception) -> str:
    """The first word of a Redis error, such as MISCONF, or the error's class; never its text."""
    word = _ERROR_WORD.match(str(error)) if isinstance(error, ResponseError) else None
    return getattr(error, "status_code", None) or (type(error).__name__ if word is None else word[1])


def _kind(error: Exception) -> str:
    if isinstance(error, (RedisTimeoutError, TimeoutError)):
        return "timeout"
    if isinstance(error, (ResponseError, AuthenticationError, BusyLoadingError)):
        return "refused"
    if isinstance(error, EmbeddingCacheError):
        return "file"
    if isinstance(error, (RedisConnectionError, OSError)) and not isinstance(error, InvalidResponse):
        return "unreachable"
    return "rubbish"
