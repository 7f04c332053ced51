"""The adapters on one vLLM server: loaded at first use; the least recently used is unloaded first.

Loading is single flight, and continues when the callers that wait for it are cancelled. An adapter in use is never
unloaded; while all slots are in use, a new adapter waits. This state may be out of date, because the server may have
been restarted or used by others. The server then reports an unknown adapter, and the next `hold` loads it again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from service.engine.interface import EngineError
from service.engine.vllm_server import UnknownModelError

Move = Callable[[str], Awaitable[None]]


@dataclass(eq=False)
class _Slot:
    loading: asyncio.Future[None]
    users: int = 0


class AdapterSlots:
    """The adapters of a server.

    Args:
        capacity: maximum number of adapters.
        load: loads an adapter on the server, by id.
        unload: unloads one.
    """

    def __init__(self, capacity: int, load: Move, unload: Move) -> None:
        self._capacity, self._load, self._unload = capacity, load, unload
        self._slots: OrderedDict[str, _Slot] = OrderedDict()
        self._freed = asyncio.Event()

    @asynccontextmanager
    async def hold(self, identity: str) -> AsyncIterator[None]:
        """The server keeps the adapter loaded inside the block.

        An UnknownModelError raised in the block means that the server has lost the adapter.
        """
        slot = await self._take(identity)
        try:
            await asyncio.shield(slot.loading)
            yield
        except UnknownModelError:
            self._drop(identity, slot)
            raise
        finally:
            slot.users -= 1
            self._freed.set()

    async def _take(self, identity: str) -> _Slot:
        while (slot := self._slots.get(identity)) is None:
            victims = self._victims()
            if len(self._slots) - len(victims) < self._capacity:
                for victim in victims:
                    del self._slots[victim]
                slot = self._slots[identity] = _Slot(asyncio.ensure_future(self._exchange(victims, identity)))
                slot.loading.add_done_callback(self._forget_failure(identity, slot))
                break
            self._freed.clear()
            await self._freed.wait()
        slot.users += 1
        self._slots.move_to_end(identity)
        return slot

    def _victims(self) -> list[str]:
        """Adapters to unload so that one more has a slot; fewer if too many are in use."""
        surplus = max(0, len(self._slots) + 1 - self._capacity)
        idle = [name for name, slot in self._slots.items() if slot.users == 0 and slot.loading.done()]
        return idle[:surplus]

    async def _exchange(self, victims: Sequence[str], identity: str) -> None:
        for victim in victims:
            with contextlib.suppress(EngineError):  # a failure must not fail this request
                await self._unload(victim)
        await self._load(identity)

    def _forget_failure(self, identity: str, slot: _Slot) -> Callable[[asyncio.Future[None]], None]:
        def check(done: asyncio.Future[None]) -> None:
            if done.cancelled() or done.exception() is not None:
                self._drop(identity, slot)

        return check

    def _drop(self, identity: str, slot: _Slot) -> None:
        if self._slots.get(identity) is slot:  # unless it was loaded again since
            del self._slots[identity]
            self._freed.set()

    def learn(self, present: Collection[str]) -> None:
        """Update the state from the server's list, except for adapters in use or being loaded."""
        for identity, slot in list(self._slots.items()):
            if identity not in present and slot.users == 0 and slot.loading.done():
                del self._slots[identity]
        for identity in present:
            if identity not in self._slots:
                loaded: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                loaded.set_result(None)
                self._slots[identity] = _Slot(loaded)
                self._slots.move_to_end(identity, last=False)
        self._freed.set()

    async def stop(self) -> None:
        """Cancel all loading."""
        loading = [slot.loading for slot in self._slots.values() if not slot.loading.done()]
        for task in loading:
            task.cancel()
        await asyncio.gather(*loading, return_exceptions=True)

    @property
    def present(self) -> list[str]:
        """Adapters that are loaded or being loaded, the least recently used first."""
        return list(self._slots)

    @property
    def in_use(self) -> set[str]:
        """Adapters in use."""
        return {identity for identity, slot in self._slots.items() if slot.users > 0}
