"""The vLLM servers, and the choice of a server for each row.

Each adapter ranks the servers in its own order (rendezvous hashing) and uses the first healthy one. So the adapters are
spread over the servers, and a server that leaves or joins moves only its own share. A server that already decodes
`max_loras` other adapters is skipped while another one has room. Rows of the plain base go to the server with the
fewest rows.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Collection, Sequence

import structlog

from service.adapter_id import ADAPTER_ID
from service.engine.interface import EngineError, UnavailableError
from service.engine.vllm_adapters import AdapterSlots
from service.engine.vllm_server import VLLMServer

_log = structlog.get_logger("service.vllm")


class Member:
    """A server of the fleet.

    Attributes:
        adapters: the adapters loaded there.
        healthy: it answered the last check.
        base: its name for the base.
        max_context: its limit of prompt and answer together, in tokens; None if unknown.
        rows: number of rows that this process has sent to it.
    """

    def __init__(self, server: VLLMServer, adapters: AdapterSlots) -> None:
        self.server, self.adapters = server, adapters
        self.healthy, self.base, self.rows = False, "", 0
        self.max_context: int | None = None

    async def check(self) -> None:
        """Check its health. When it becomes healthy, read its list of models too."""
        healthy = await self.server.is_healthy()
        if healthy and not self.healthy:
            try:
                served = await self.server.served()
            except EngineError as error:
                _log.warning("vllm_not_understood", server=self.server.url, error=str(error))
                return
            self.base, self.max_context = served.base, served.max_context
            self.adapters.learn([name for name in served.adapters if ADAPTER_ID.fullmatch(name)])
            _log.info("vllm_up", server=self.server.url, base=served.base, adapters=len(served.adapters))
        elif self.healthy and not healthy:
            _log.warning("vllm_down", server=self.server.url)
        self.healthy = healthy


class Fleet:
    """All servers. `start` checks each once, then regularly until `stop`."""

    def __init__(self, members: Sequence[Member], *, max_loras: int, check_seconds: float) -> None:
        self.members, self._max_loras, self._check_seconds = tuple(members), max_loras, check_seconds
        self._look = asyncio.Event()
        self._watching: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Check each server once, healthy or not, and start the background checks."""
        await self._check()
        self._watching = asyncio.create_task(self._watch())

    async def _check(self) -> None:
        await asyncio.gather(*(member.check() for member in self.members))

    async def _watch(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._check_seconds):
                    await self._look.wait()
                await asyncio.sleep(min(0.1, self._check_seconds))  # one check for many reports of the same fault
            self._look.clear()
            try:
                await self._check()
            except Exception:
                _log.exception("vllm_check_failed")

    async def stop(self) -> None:
        """Stop the checks and close all connections."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        for member in self.members:
            await member.adapters.stop()
            await member.server.close()

    def report_down(self, member: Member) -> None:
        """Mark a server that did not answer a request as down, and check it now."""
        if member.healthy:
            _log.warning("vllm_down", server=member.server.url)
        member.healthy = False
        self._look.set()

    def choose(self, adapter_id: str | None, avoid: Collection[Member] = ()) -> Member:
        """The server for a row.

        Raises:
            UnavailableError: none is healthy.
        """
        healthy = [member for member in self.members if member.healthy and member not in avoid]
        if not healthy:
            raise UnavailableError("no vLLM server answers at the moment; send the request again", self._check_seconds)
        if adapter_id is None:
            return min(healthy, key=lambda member: member.rows)
        ranked = sorted(healthy, key=lambda member: affinity(member.server.url, adapter_id), reverse=True)
        return next((member for member in ranked if self._has_room(member, adapter_id)), ranked[0])

    def _has_room(self, member: Member, adapter_id: str) -> bool:
        in_use = member.adapters.in_use
        return adapter_id in in_use or len(in_use) < self._max_loras

    @property
    def healthy(self) -> int:
        """Servers that answer."""
        return sum(member.healthy for member in self.members)

    @property
    def problem(self) -> str | None:
        """How many servers do not answer. The log names them; clients must not see their addresses."""
        down = len(self.members) - self.healthy
        return f"{down} of {len(self.members)} vLLM servers do not answer" if down else None


def affinity(url: str, adapter_id: str) -> int:
    """The rank of a server for an adapter, higher first; the same in every process."""
    return int.from_bytes(hashlib.sha256(f"{url}\0{adapter_id}".encode()).digest()[:8], "big")
