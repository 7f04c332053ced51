from __future__ import annotations

import asyncio

import pytest

from service.engine.interface import UpstreamError
from service.engine.vllm_adapters import AdapterPlaces
from service.engine.vllm_server import UnknownModelError
from tests.service.support.harness import until


class Server:
    """Writes down what it is asked to do."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.fail: Exception | None = None

    async def load(self, name: str) -> None:
        await self.gate.wait()
        if self.fail is not None:
            error, self.fail = self.fail, None
            raise error
        self.log.append(f"+{name}")

    async def unload(self, name: str) -> None:
        self.log.append(f"-{name}")

    def places(self, capacity: int) -> AdapterPlaces:
        return AdapterPlaces(capacity, self.load, self.unload)


async def use(places: AdapterPlaces, name: str) -> None:
    async with places.hold(name):
        pass


async def test_an_adapter_is_loaded_once_for_all_who_want_it() -> None:
    server = Server()
    places = server.places(2)
    server.gate.clear()
    users = [asyncio.create_task(use(places, "a")) for _ in range(20)]
    await asyncio.sleep(0)
    server.gate.set()
    await asyncio.gather(*users)
    await use(places, "a")
    assert server.log == ["+a"]


async def test_the_least_recently_used_goes_and_one_in_use_stays() -> None:
    server = Server()
    places = server.places(2)
    async with places.hold("a"):
        await use(places, "b")
        await use(places, "c")
        assert server.log == ["+a", "+b", "-b", "+c"]
    await use(places, "c")
    await use(places, "d")
    assert server.log[4:] == ["-a", "+d"]
    assert (places.present, places.in_use) == (["c", "d"], set())


async def test_while_all_places_are_in_use_a_new_adapter_waits() -> None:
    server = Server()
    places = server.places(1)
    async with places.hold("a"):
        waiting = asyncio.create_task(use(places, "b"))
        await use(places, "a")
        assert server.log == ["+a"]
        assert not waiting.done()
    await waiting
    assert server.log == ["+a", "-a", "+b"]


async def test_loading_goes_on_when_those_who_wait_have_gone() -> None:
    server = Server()
    places = server.places(1)
    server.gate.clear()
    user = asyncio.create_task(use(places, "a"))
    await until(lambda: places.in_use == {"a"})
    user.cancel()
    await asyncio.gather(user, return_exceptions=True)
    server.gate.set()
    await use(places, "a")
    assert server.log == ["+a"]


async def test_a_failed_load_is_told_to_all_who_wait_and_tried_again_by_the_next() -> None:
    server = Server()
    places = server.places(1)
    server.gate.clear()
    users = [asyncio.create_task(use(places, "a")) for _ in range(3)]
    server.fail = UpstreamError("no")
    await asyncio.sleep(0)
    server.gate.set()
    outcomes = await asyncio.gather(*users, return_exceptions=True)
    assert [str(outcome) for outcome in outcomes] == ["no"] * 3
    assert places.present == []
    await use(places, "a")
    assert server.log == ["+a"]


async def test_what_the_server_has_forgotten_is_loaded_again_once_for_all() -> None:
    server = Server()
    places = server.places(2)
    await use(places, "a")

    async def asks_in_vain() -> None:
        async with places.hold("a"):
            await asyncio.sleep(0)
            raise UnknownModelError("a")

    async def finds_out() -> None:
        with pytest.raises(UnknownModelError):
            await asks_in_vain()
        await use(places, "a")

    await asyncio.gather(*(finds_out() for _ in range(5)))
    assert server.log == ["+a", "+a"]


async def test_the_servers_own_list_replaces_what_was_believed_but_not_what_is_in_use() -> None:
    server = Server()
    places = server.places(3)
    await use(places, "gone")
    async with places.hold("held"):
        places.learn(["there", "too"])
        assert set(places.present) == {"there", "too", "held"}
        await use(places, "there")
        assert server.log == ["+gone", "+held"]
        await use(places, "new")
    assert server.log == ["+gone", "+held", "-too", "+new"]
    places.learn([str(i) for i in range(6)])
    await use(places, "last")
    assert len(places.present) == 3


async def test_stopping_ends_what_is_being_loaded() -> None:
    server = Server()
    places = server.places(1)
    server.gate.clear()
    user = asyncio.create_task(use(places, "a"))
    await until(lambda: places.in_use == {"a"})
    await places.stop()
    (outcome,) = await asyncio.gather(user, return_exceptions=True)
    assert isinstance(outcome, asyncio.CancelledError)
    assert server.log == []
