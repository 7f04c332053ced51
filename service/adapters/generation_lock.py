"""A Redis lock, so that only one replica generates a given adapter: single flight across processes.

It is redis-py's lock with a lease. The holder renews it during its work; if the holder dies, the lease expires and the
next process gets the lock. The lock only saves work: the store keeps the first version of an adapter. If Redis fails or
a lease is lost, two processes may make the same adapter, without other consequences.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Self

import structlog
from redis.asyncio import Redis
from redis.asyncio.lock import Lock
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import LockError, RedisError

from service.settings import Settings

_PREFIX = "llgbm:generate:"
_POLL_SECONDS = 0.05
_log = structlog.get_logger("service.generation_lock")


class GenerationLock:
    """A lock for each adapter id; without Redis it does nothing.

    Args:
        url: of Redis; None for no lock.
        lease: seconds after which the lock of a dead process is free again.
        timeout: seconds for connecting and for one exchange.
        retry_after: seconds without Redis after a failure.
    """

    def __init__(self, url: str | None, *, lease: float, timeout: float, retry_after: float) -> None:
        self._lease, self._retry_after = lease, retry_after
        self._closed_until = 0.0
        self._redis = None
        if url is not None:
            self._redis = Redis.from_url(
                url, socket_timeout=timeout, socket_connect_timeout=timeout, retry=Retry(NoBackoff(), 0)
            )

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """The lock of the settings."""
        return cls(
            None if settings.redis_url is None else settings.redis_url.get_secret_value(),
            lease=settings.redis_lease,
            timeout=settings.redis_timeout,
            retry_after=settings.redis_retry_after,
        )

    @asynccontextmanager
    async def hold(self, identity: str) -> AsyncIterator[None]:
        """Hold the lock of the adapter `identity` inside the block; waits for other holders."""
        lock = await self._acquired(identity)
        if lock is None:
            yield
            return
        renewing = asyncio.create_task(self._renew(lock))
        try:
            yield
        finally:
            renewing.cancel()
            await asyncio.gather(renewing, return_exceptions=True)
            try:
                await lock.release()
            except LockError:
                pass  # the lease expired, and another process may hold the lock
            except (RedisError, OSError) as error:
                self._failed(error)

    async def close(self) -> None:
        """Close the connections."""
        if self._redis is not None:
            await self._redis.aclose()

    async def _acquired(self, identity: str) -> Lock | None:
        if self._redis is None or time.monotonic() < self._closed_until:
            return None
        lock = self._redis.lock(_PREFIX + identity, timeout=self._lease, sleep=_POLL_SECONDS, thread_local=False)
        try:
            await lock.acquire()
        except (RedisError, OSError) as error:
            self._failed(error)
            return None
        return lock

    async def _renew(self, lock: Lock) -> None:
        while True:
            await asyncio.sleep(self._lease / 3)
            try:
                await lock.reacquire()
            except LockError:
                _log.warning("generation_lock_lost")
                return
            except (RedisError, OSError) as error:
                self._failed(error)

    def _failed(self, error: Exception) -> None:
        self._closed_until = time.monotonic() + self._retry_after
        _log.warning("generation_lock_redis_failed", error=type(error).__name__, again_in=self._retry_after)
