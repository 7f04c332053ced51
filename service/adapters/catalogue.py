"""Finds, lists, names and deletes adapters. Knows HTTP's errors but not its requests.

A single adapter is looked up in the store itself; lists and the names of an adapter come from the index.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from service.adapters.errors import AdapterDamagedError, NameTakenError, UnknownAdapterError, UnusableAdapterError
from service.adapters.index import AdapterIndex
from service.adapters.records import AdapterRecord, require_name
from service.adapters.store import AdapterStore
from service.errors import ApiError
from service.observability.metrics import Metrics


class AdapterCatalogue:
    """The adapters of the store and their names.

    Args:
        base_id: name of the base, which no adapter may have.
    """

    def __init__(self, store: AdapterStore, index: AdapterIndex, base_id: str, metrics: Metrics) -> None:
        self._store, self._files, self._base_id, self._metrics = store, store.files, base_id, metrics
        self._index = index

    async def resolve(self, name_or_id: str) -> str:
        """The id of an adapter.

        Raises:
            ApiError: 404.
        """
        identity = await asyncio.to_thread(self._files.resolve, name_or_id)
        if identity is None:
            raise UnknownAdapterError(name_or_id)
        return identity

    async def record(self, name_or_id: str) -> AdapterRecord:
        """The record of an adapter. Raises ApiError 404."""

        def find() -> AdapterRecord | None:
            identity = self._files.resolve(name_or_id)
            return None if identity is None else self._files.record(identity)

        record = await asyncio.to_thread(find)
        if record is None:
            raise UnknownAdapterError(name_or_id)
        return record

    async def page(self, limit: int, after: str | None) -> tuple[list[AdapterRecord], bool]:
        """Up to `limit` adapters without their norms, newest first, and whether there are more.

        Args:
            after: id of the last adapter on the previous page.

        Raises:
            ApiError: 404, the adapter `after` does not exist (any more).
        """
        await asyncio.to_thread(self._index.catch_up)
        records = await asyncio.to_thread(self._index.page, limit + 1, after)
        if records is None:
            raise _no_such_page(after)
        return records[:limit], len(records) > limit

    async def ids(self, limit: int, after: str | None) -> tuple[list[tuple[str, float]], bool]:
        """As `page`, but only the id of each adapter and its time of creation, in seconds since 1970."""
        await asyncio.to_thread(self._index.catch_up)
        found = await asyncio.to_thread(self._index.ids, limit + 1, after)
        if found is None:
            raise _no_such_page(after)
        return found[:limit], len(found) > limit

    async def names_of(self, identities: Sequence[str], *, fresh: bool = False) -> dict[str, list[str]]:
        """Id -> its sorted names, for adapters with names; `fresh` first looks for names given by other processes."""
        if fresh:
            await asyncio.to_thread(self._index.catch_up)
        return await asyncio.to_thread(self._index.names_of, identities)

    async def stored(self, record: AdapterRecord) -> None:
        """Add a newly stored adapter to the index."""
        await asyncio.to_thread(self._index.put, record)

    def close(self) -> None:
        """Close the index."""
        self._index.close()

    async def folder(self, identity: str) -> Path:
        """The adapter's PEFT folder on this machine. Raises ApiError: 404, or 500 for a damaged one."""
        try:
            return await asyncio.to_thread(self._files.local, identity)
        except FileNotFoundError:
            raise UnknownAdapterError(identity) from None
        except AdapterDamagedError as error:
            raise UnusableAdapterError(identity) from error

    async def name(self, name: str, identity: str, *, taken_status: int = 409) -> None:
        """Give an adapter a name. Raises ApiError: the name is taken or invalid."""
        if name == self._base_id:
            raise ApiError(taken_status, f"{name!r} is the name of the base", param="name")
        try:
            await asyncio.to_thread(self._files.name, name, identity)
        except NameTakenError as error:
            raise ApiError(taken_status, f"{error}; choose another", code="name_taken", param="name") from error
        except ValueError as error:
            raise ApiError(422, str(error), param="name") from error
        await asyncio.to_thread(self._index.put_name, name, identity)

    async def require_free(self, name: str | None, identity: str | None, *, taken_status: int = 409) -> None:
        """Refuse early a name that is invalid or belongs to another adapter than `identity`."""
        if name is None:
            return
        try:
            require_name(name)
        except ValueError as error:
            raise ApiError(422, str(error), param="name") from error
        holder = await asyncio.to_thread(self._files.resolve, name)
        if holder is not None and holder != identity:
            raise ApiError(
                taken_status, f"the name {name!r} belongs to {holder}; choose another", code="name_taken", param="name"
            )

    async def composed_as(self, name: str | None, identities: Sequence[str], factors: Sequence[float]) -> str | None:
        """The id of the adapter `name` if it is the weighted sum of these; ids may be names."""
        if name is None or (holder := await asyncio.to_thread(self._files.resolve, name)) is None:
            return None
        parts = tuple(zip([await self.resolve(identity) for identity in identities], factors, strict=True))
        record = await asyncio.to_thread(self._files.record, holder)
        return holder if record is not None and record.parts == parts else None

    async def unload(self, name: str) -> None:
        """Remove a name. Delete its adapter if that was loaded and has no other name. Raises ApiError 404."""
        identity = await self.resolve(name)
        if identity == name or not await asyncio.to_thread(self._files.unname, name):
            raise UnknownAdapterError(name)
        await asyncio.to_thread(self._index.remove_name, name)
        record = await asyncio.to_thread(self._files.record, identity)
        if record is not None and record.source == "loaded" and not await self.names_of([identity], fresh=True):
            await self.delete(identity)

    async def delete(self, name_or_id: str) -> str:
        """Delete an adapter with its names; returns its id. Answers that use it are finished. Raises ApiError 404."""
        identity = await self.resolve(name_or_id)
        names = (await self.names_of([identity], fresh=True)).get(identity, [])
        if name_or_id != identity and name_or_id not in names:
            names.append(name_or_id)
        if not await asyncio.to_thread(self._store.delete, identity, names):
            raise UnknownAdapterError(name_or_id)
        await asyncio.to_thread(self._index.remove, identity)
        self._metrics.adapters.labels("deleted").inc()
        return identity


def _no_such_page(after: str | None) -> ApiError:
    return ApiError(404, f"there is no adapter {after!r} to go on after; start again without it", param="after")
