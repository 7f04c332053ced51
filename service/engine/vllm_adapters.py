"""The adapters on one vLLM server: loaded when they are first wanted, the least recently used taken away first.

Loading is single flight, and goes on when those who wait for it have gone. An adapter in use is never taken away; while
all places are in use, a new adapter waits. What is believed here may be wrong, since the server may have been restarted
or used by others: it then says that it does not know an adapter, and the next `hold` loads it again.
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
class _Place:
    loading: asyncio.Future[None]
    users: int = 0


class AdapterPlaces:
    """Which adapters a server has.

    Args:
        capacity: adapters at most.
        load: brings an adapter to the server, by id.
        unload: takes one away.
    """

    def __init__(self, capacity: int, load: Move, unload: Move) -> None:
        self._capacity, self._load, self._unload = capacity, load, unload
        self._places: OrderedDict[str, _Place] = OrderedDict()
        self._freed = asyncio.Event()

    @asynccontextmanager
    async def hold(self, identity: str) -> AsyncIterator[None]:
        """Inside the block the server has the adapter, and keeps it.

        An UnknownModelError that leaves the block says that it does not have it after all.
        """
        place = await self._take(identity)
        try:
            await asyncio.shield(place.loading)
            yield
        except UnknownModelError:
            self._drop(identity, place)
            raise
        finally:
            place.users -= 1
            self._freed.set()

    async def _take(self, identity: str) -> _Place:
        while (place := self._places.get(identity)) is None:
            victims = self._victims()
            if len(self._places) - len(victims) < self._capacity:
                for victim in victims:
                    del self._places[victim]
                place = self._places[identity] = _Place(asyncio.ensure_future(self._exchange(victims, identity)))
                place.loading.add_done_callback(self._forget_failure(identity, place))
                break
            self._freed.clear()
            await self._freed.wait()
        place.users += 1
        self._places.move_to_end(identity)
        return place

    def _victims(self) -> list[str]:
        """Those to take away so that one more has a place; fewer if too many are in use."""
        surplus = max(0, len(self._places) + 1 - self._capacity)
        idle = [name for name, place in self._places.items() if place.users == 0 and place.loading.done()]
        return idle[:surplus]

    async def _exchange(self, victims: Sequence[str], identity: str) -> None:
        for victim in victims:
            with contextlib.suppress(EngineError):  # it costs the server some memory, and this request nothing
                await self._unload(victim)
        await self._load(identity)

    def _forget_failure(self, identity: str, place: _Place) -> Callable[[asyncio.Future[None]], None]:
        def check(done: asyncio.Future[None]) -> None:
            if done.cancelled() or done.exception() is not None:
                self._drop(identity, place)

        return check

    def _drop(self, identity: str, place: _Place) -> None:
        if self._places.get(identity) is place:  # and not one that was loaded since
            del self._places[identity]
            self._freed.set()

    def learn(self, present: Collection[str]) -> None:
        """Take over what the server says that it has, apart from what is in use or on its way."""
        for identity, place in list(self._places.items()):
            if identity not in present and place.users == 0 and place.loading.done():
                del self._places[identity]
        for identity in present:
            if identity not in self._places:
                loaded: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                loaded.set_result(None)
                self._places[identity] = _Place(loaded)
                self._places.move_to_end(identity, last=False)
        self._freed.set()

    async def stop(self) -> None:
        """End what is being loaded."""
        loading = [place.loading for place in self._places.values() if not place.loading.done()]
        for task in loading:
            task.cancel()
        await asyncio.gather(*loading, return_exceptions=True)

    @property
    def present(self) -> list[str]:
        """Adapters that are there or on their way, the least recently used first."""
        return list(self._places)

    @property
    def in_use(self) -> set[str]:
        """Adapters that somebody holds."""
        return {identity for identity, place in self._places.items() if place.users > 0}
