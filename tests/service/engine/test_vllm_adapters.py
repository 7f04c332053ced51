from __future__ import annotations

import asyncio

import pytest

from service.engine.interface import UpstreamError
from service.engine.vllm_adapters import AdapterSlots
from service.engine.vllm_server import UnknownModelError
from tests.service.support.harness import until


class Server:
    """Records the calls."""

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

    def slots(self, capacity: int) -> AdapterSlots:
        return AdapterSlots(capacity, self.load, self.unload)


async def use(slots: AdapterSlots, name: str) -> None:
    async with slots.hold(name):
        pass


async def test_an_adapter_is_loaded_once_for_all_who_want_it() -> None:
    server = Server()
    slots = server.slots(2)
    server.gate.clear()
    users = [asyncio.create_task(use(slots, "a")) for _ in range(20)]
    await asyncio.sleep(0)
    server.gate.set()
    await asyncio.gather(*users)
    await use(slots, "a")
    assert server.log == ["+a"]


async def test_the_least_recently_used_goes_and_one_in_use_stays() -> None:
    server = Server()
    slots = server.slots(2)
    async with slots.hold("a"):
        await use(slots, "b")
        await use(slots, "c")
        assert server.log == ["+a", "+b", "-b", "+c"]
    await use(slots, "c")
    await use(slots, "d")
    assert server.log[4:] == ["-a", "+d"]
    assert (slots.present, slots.in_use) == (["c", "d"], set())


async def test_while_all_places_are_in_use_a_new_adapter_waits() -> None:
    server = Server()
    slots = server.slots(1)
    async with slots.hold("a"):
        waiting = asyncio.create_task(use(slots, "b"))
        await use(slots, "a")
        assert server.log == ["+a"]
        assert not waiting.done()
    await waiting
    assert server.log == ["+a", "-a", "+b"]


async def test_loading_goes_on_when_those_who_wait_have_gone() -> None:
    server = Server()
    slots = server.slots(1)
    server.gate.clear()
    user = asyncio.create_task(use(slots, "a"))
    await until(lambda: slots.in_use == {"a"})
    user.cancel()
    await asyncio.gather(user, return_exceptions=True)
    server.gate.set()
    await use(slots, "a")
    assert server.log == ["+a"]


async def test_a_failed_load_is_told_to_all_who_wait_and_tried_again_by_the_next() -> None:
    server = Server()
    slots = server.slots(1)
    server.gate.clear()
    users = [asyncio.create_task(use(slots, "a")) for _ in range(3)]
    server.fail = UpstreamError("no")
    await asyncio.sleep(0)
    server.gate.set()
    outcomes = await asyncio.gather(*users, return_exceptions=True)
    assert [str(outcome) for outcome in outcomes] == ["no"] * 3
    assert slots.present == []
    await use(slots, "a")
    assert server.log == ["+a"]


async def test_what_the_server_has_forgotten_is_loaded_again_once_for_all() -> None:
    server = Server()
    slots = server.slots(2)
    await use(slots, "a")

    async def asks_in_vain() -> None:
        async with slots.hold("a"):
            await asyncio.sleep(0)
            raise UnknownModelError("a")

    async def finds_out() -> None:
        with pytest.raises(UnknownModelError):
            await asks_in_vain()
        await use(slots, "a")

    await asyncio.gather(*(finds_out() for _ in range(5)))
    assert server.log == ["+a", "+a"]


async def test_the_servers_own_list_replaces_what_was_believed_but_not_what_is_in_use() -> None:
    server = Server()
    slots = server.slots(3)
    await use(slots, "gone")
    async with slots.hold("held"):
        slots.learn(["there", "too"])
        assert set(slots.present) == {"there", "too", "held"}
        await use(slots, "there")
        assert server.log == ["+gone", "+held"]
        await use(slots, "new")
    assert server.log == ["+gone", "+held", "-too", "+new"]
    slots.learn([str(i) for i in range(6)])
    await use(slots, "last")
    assert len(slots.present) == 3


async def test_stopping_ends_what_is_being_loaded() -> None:
    server = Server()
    slots = server.slots(1)
    server.gate.clear()
    user = asyncio.create_task(use(slots, "a"))
    await until(lambda: slots.in_use == {"a"})
    await slots.stop()
    (outcome,) = await asyncio.gather(user, return_exceptions=True)
    assert isinstance(outcome, asyncio.CancelledError)
    assert server.log == []
