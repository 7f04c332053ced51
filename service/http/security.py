"""Access control in one middleware: host names, API keys, rate limits and body sizes.

Only the sha256 of a key is stored, and it is compared in constant time with all known ones. Every path needs a key,
whether or not it exists, unless it is on the public list. Rates count by key, or by address if there are no keys.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import structlog
from limits import RateLimitItem, parse
from limits.aio.storage import MemoryStorage, RedisStorage
from limits.aio.strategies import MovingWindowRateLimiter
from redis.asyncio import ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import ApiError
from service.http.errors import answer_to
from service.http.forwarded import own_path

if TYPE_CHECKING:
    from service.observability.metrics import Metrics
    from service.settings import Settings

_log = structlog.get_logger("service.security")
_FOR_PROBES = frozenset({"/livez", "/readyz", "/metrics"})
"""Answered under any host name: probes and scrapers use the address of the pod, or HTTP/1.0 without a Host header."""


class ApiKeys:
    """The API keys, by their sha256 in hexadecimal."""

    def __init__(self, hashes: Sequence[str]) -> None:
        self._hashes = tuple(h.encode() for h in hashes)

    def __bool__(self) -> bool:
        return bool(self._hashes)

    def identify(self, authorization: str | None) -> str:
        """The first 8 digits of the key's hash, its name in logs and limits.

        Raises:
            ApiError: 401, the key is missing or unknown.
        """
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise _unauthorised("this path needs an API key: send the header `Authorization: Bearer KEY`")
        given = hashlib.sha256(key.strip().encode()).hexdigest().encode()
        # compare with all of them, so that the time does not depend on which one matches
        matches = [hmac.compare_digest(given, known) for known in self._hashes]
        if not any(matches):
            raise _unauthorised("this API key is not known here; ask the operator for one")
        return given[:8].decode()


def _unauthorised(message: str) -> ApiError:
    return ApiError(401, message, headers={"WWW-Authenticate": "Bearer"})


class RateLimiter:
    """A moving window per client. With Redis, all processes share one count; without, each process has its own.

    If Redis does not answer, this process counts alone: a limit that is too generous for a while is better than an
    outage. Redis is then not asked for `retry_after` seconds, so that requests do not wait for it.
    """

    def __init__(self, rate: str, redis_url: str | None, timeout: float, retry_after: float) -> None:
        self._item: RateLimitItem = parse(rate)
        self._local = MovingWindowRateLimiter(MemoryStorage())
        self._shared: MovingWindowRateLimiter | None = None
        self._pool: ConnectionPool | None = None
        self._retry_after, self._closed_until = retry_after, 0.0
        if redis_url is not None:
            self._pool = ConnectionPool.from_url(
                redis_url, socket_timeout=timeout, socket_connect_timeout=timeout, retry=Retry(NoBackoff(), 0)
            )
            storage = RedisStorage(
                "async+redis://localhost:6379",  # unused: the pool has the address, also in forms unknown here
                implementation="redispy",
                connection_pool=self._pool,  # type: ignore[arg-type]  # accepted, but missing in its annotation
            )
            self._shared = MovingWindowRateLimiter(storage)

    async def check(self, client: str) -> None:
        """Count one request of `client`.

        Raises:
            ApiError: 429 with Retry-After, the rate is used up.
        """
        if self._shared is not None and time.monotonic() >= self._closed_until:
            try:
                await self._check(self._shared, client)
            except (RedisError, OSError, TimeoutError) as error:
                self._closed_until = time.monotonic() + self._retry_after
                _log.warning("rate_limit_redis_failed", error=type(error).__name__, again_in=self._retry_after)
            else:
                return
        await self._check(self._local, client)

    async def close(self) -> None:
        """Close the connections."""
        if self._pool is not None:
            await self._pool.aclose()

    async def _check(self, limiter: MovingWindowRateLimiter, client: str) -> None:
        if await limiter.hit(self._item, client):
            return
        window = await limiter.get_window_stats(self._item, client)
        raise ApiError(
            429,
            f"more than {self._item}; wait for the seconds of Retry-After",
            retry_after=window.reset_time - time.time(),
        )


def rate_limiter(settings: Settings) -> RateLimiter | None:
    """The limiter of the settings; None for no limit."""
    if not settings.rate_limit:
        return None
    redis_url = None if settings.redis_url is None else settings.redis_url.get_secret_value()
    return RateLimiter(settings.rate_limit, redis_url, settings.redis_timeout, settings.redis_retry_after)


class AccessMiddleware:
    """Middleware: checks host, key, rate and size, in this order, before the application runs."""

    def __init__(self, app: ASGIApp, settings: Settings, limiter: RateLimiter | None, metrics: Metrics) -> None:
        self.app, self._limiter, self._metrics = app, limiter, metrics
        self._keys = ApiKeys(settings.api_key_hashes)
        self._public = settings.public_paths
        self._hosts = () if "*" in settings.allowed_hosts else settings.allowed_hosts
        self._max_body = settings.max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse the request, or pass it on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        try:
            path = own_path(scope)
            if path not in _FOR_PROBES:
                self._check_host(headers.get("host", ""))
            if not self.is_public(path):
                client = (scope.get("client") or ("local",))[0]
                if self._keys:
                    client = scope["llgbm.key"] = self._keys.identify(headers.get("authorization"))
                if self._limiter is not None:
                    await self._limiter.check(client)
            self._check_declared_size(headers.get("content-length"))
        except ApiError as error:
            if error.status_code == 429:
                self._metrics.rejected.labels("rate").inc()
            await answer_to(error).response()(scope, receive, send)
            return
        await self.app(scope, self._counting(receive), send)

    def is_public(self, path: str) -> bool:
        """Whether a path needs no key."""
        return any(path.startswith(entry[:-1]) if entry.endswith("*") else path == entry for entry in self._public)

    def _check_host(self, host: str) -> None:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:  # invalid address in brackets
            name = ""
        if self._hosts and name not in self._hosts:
            raise ApiError(
                403,
                f"this service does not answer to the host name {name!r}; LLGBM_ALLOWED_HOSTS has those that it does",
                code="host_not_allowed",
            )

    def _check_declared_size(self, length: str | None) -> None:
        if length is not None and length.isdigit() and int(length) > self._max_body:
            raise self._too_large()

    def _too_large(self) -> ApiError:
        return ApiError(413, f"the request's body is larger than the {self._max_body} bytes that are allowed here")

    def _counting(self, receive: Receive) -> Receive:
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            if message["type"] == "http.request":
                seen += len(message.get("body", b""))
                if seen > self._max_body:
                    raise self._too_large()
            return message

        return counted
