from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from llgbm.prompting import AdapterRequest
from service.adapters.generation_lock import GenerationLock
from service.models.loading import LoadModels
from tests.service.support.harness import make_settings, running, services_of, until
from tests.service.support.redis_server import RedisServer


@pytest.fixture
async def two(redis_server: RedisServer) -> AsyncIterator[tuple[GenerationLock, GenerationLock]]:
    made = [GenerationLock(redis_server.url, lease=2.0, timeout=2, retry_after=30) for _ in range(2)]
    yield made[0], made[1]
    for lock in made:
        await lock.close()


async def taken(lock: GenerationLock, name: str, gate: asyncio.Event, order: list[str], who: str) -> None:
    async with lock.hold(name):
        order.append(who)
        await gate.wait()
        order.append(f"{who} done")


async def test_without_redis_nobody_waits() -> None:
    lock = GenerationLock(None, lease=1, timeout=1, retry_after=1)
    async with lock.hold("a"), lock.hold("a"):
        pass
    await lock.close()


async def test_one_waits_for_the_other_longer_than_a_lease_and_other_names_do_not_wait(
    two: tuple[GenerationLock, GenerationLock],
) -> None:
    gate, order = asyncio.Event(), list[str]()
    first = asyncio.create_task(taken(two[0], "a", gate, order, "first"))
    await until(lambda: order == ["first"])
    second = asyncio.create_task(taken(two[1], "a", gate, order, "second"))
    async with two[1].hold("b"):
        await asyncio.sleep(5)  # 2.5 leases, so the lease was renewed
    assert order == ["first"]
    gate.set()
    await asyncio.gather(first, second)
    assert order == ["first", "first done", "second", "second done"]


async def test_the_lock_of_a_process_that_is_gone_is_free_again(
    two: tuple[GenerationLock, GenerationLock], redis_server: RedisServer
) -> None:
    with redis_server.client() as client:
        client.set("llgbm:generate:a", "somebody who will not come back", px=300)
    async with two[0].hold("a"):
        pass
    with redis_server.client() as client:
        assert not client.exists("llgbm:generate:a")


async def test_a_redis_that_goes_away_stops_nobody(
    two: tuple[GenerationLock, GenerationLock], redis_server: RedisServer
) -> None:
    async with two[0].hold("a"):
        redis_server.stop()
        async with two[1].hold("a"):
            pass
    async with two[0].hold("a"):
        pass


async def test_two_replicas_make_an_adapter_once(
    redis_server: RedisServer, tmp_path: Path, load_dummy: LoadModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [
        make_settings(
            tmp_path / name, store_url=f"file://{tmp_path}/shared", redis_url=redis_server.url, redis_timeout=2
        )
        for name in ("one", "two")
    ]
    request = AdapterRequest(("a task",))
    async with running(settings[0], load_dummy) as (one, _), running(settings[1], load_dummy) as (two, _):
        services = [services_of(one), services_of(two)]
        calls: list[int] = []
        maker = services[0].models.maker
        make = maker.make

        def counted(requests):  # type: ignore[no-untyped-def]
            calls.append(len(requests))
            return make(requests)

        monkeypatch.setattr(maker, "make", counted)
        outcomes = await asyncio.gather(*(s.adapters.get_or_make(request) for s in services for _ in range(3)))
        assert sum(outcome.made for outcome in outcomes) == 1
        assert calls == [1]
        assert len({outcome.record.id for outcome in outcomes}) == 1
        for each in services:
            lease = await each.adapters.lease(outcomes[0].record.id)
            lease.release()
