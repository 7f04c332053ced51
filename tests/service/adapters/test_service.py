from __future__ import annotations

import asyncio
import threading
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from llgbm.prompting import AdapterRequest
from service.errors import ApiError
from tests.service.support.harness import Serving, services_of, state_of, until

App = tuple[FastAPI, httpx.AsyncClient]
REQUEST = AdapterRequest(("a task",))


def hold(monkeypatch: pytest.MonkeyPatch, owner: object, method: str) -> threading.Event:
    """Let the calls of a method wait until the returned event is set."""
    original, go = getattr(owner, method), threading.Event()

    def held(*args: Any) -> Any:
        go.wait(20)
        return original(*args)

    monkeypatch.setattr(owner, method, held)
    return go


async def test_after_a_failure_the_next_one_tries_again(dummy_app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    services = services_of(dummy_app[0])
    maker = services.models.maker
    with monkeypatch.context() as patch:
        patch.setattr(maker, "make", lambda requests: 1 / 0)
        for outcome in await asyncio.gather(
            *(services.adapters.get_or_make(REQUEST) for _ in range(3)), return_exceptions=True
        ):
            assert isinstance(outcome, ZeroDivisionError)
    assert (await services.adapters.get_or_make(REQUEST)).made


async def test_when_all_have_gone_the_adapter_is_made_all_the_same(
    dummy_app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    services = services_of(dummy_app[0])
    go = hold(monkeypatch, services.models.maker, "make")
    asked = [asyncio.ensure_future(services.adapters.get_or_make(REQUEST)) for _ in range(3)]
    await until(lambda: bool(services.adapters._making))
    for each in asked:
        each.cancel()
    go.set()
    identity = services.models.maker.id_of(REQUEST)
    await until(lambda: services.store.files.exists(identity))
    await until(lambda: not services.adapters._making)


async def test_a_reference_that_nobody_waits_for_any_more_is_given_back(
    dummy_app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    services = services_of(dummy_app[0])
    record = (await services.adapters.get_or_make(REQUEST)).record
    go = hold(monkeypatch, services.store, "acquire")
    asking = asyncio.ensure_future(services.adapters.lease(record.id))
    await asyncio.sleep(0.02)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    go.set()
    await until(lambda: services.store.resident.get(record.id) == 0)


async def test_the_same_adapter_twice_in_a_composition_counts_twice(dummy_app: App) -> None:
    services = services_of(dummy_app[0])
    record = (await services.adapters.get_or_make(REQUEST)).record
    twice = (await services.adapters.compose([record.id, record.id], [0.5, 0.5])).record
    for target, norms in record.norms.items():
        assert twice.norms[target] == pytest.approx(norms, rel=1e-4)
    assert set(services.store.resident.values()) == {0}


async def test_too_many_at_once_are_refused(dummy_app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    services = services_of(dummy_app[0])
    go = hold(monkeypatch, services.models.maker, "make")
    limit = 32
    asked = [
        asyncio.ensure_future(services.adapters.get_or_make(AdapterRequest((f"task {i}",)))) for i in range(limit + 10)
    ]
    await until(lambda: any(each.done() for each in asked))
    go.set()
    outcomes = await asyncio.gather(*asked, return_exceptions=True)
    refused = [outcome for outcome in outcomes if isinstance(outcome, ApiError)]
    assert {error.status_code for error in refused} == {429}
    assert len(outcomes) - len(refused) >= limit


async def test_adapters_that_are_made_but_not_written_yet_count_too(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(max_jobs=2) as (app, _):
        services = services_of(app)
        adapters, files = services.adapters, services.store.files
        part = (await adapters.get_or_make(REQUEST)).record.id
        write, go, writing = files.write, threading.Event(), list[str]()

        def slow_write(weights, record):  # type: ignore[no-untyped-def]
            writing.append(record.id)
            go.wait(20)
            return write(weights, record)

        monkeypatch.setattr(files, "write", slow_write)
        another = AdapterRequest(("another task",))
        under_way = [
            asyncio.ensure_future(work)
            for work in (adapters.get_or_make(another), adapters.compose([part], [0.5]), adapters.get_or_make(another))
        ]
        await until(lambda: len(writing) == 2)
        for one_more in (adapters.get_or_make(AdapterRequest(("one too many",))), adapters.compose([part], [0.7])):
            with pytest.raises(ApiError) as caught:
                await one_more
            assert (caught.value.status_code, caught.value.code) == (429, "queue_full")
        go.set()
        assert sorted(outcome.made for outcome in await asyncio.gather(*under_way)) == [False, True, True]
        assert (await adapters.compose([part], [0.7])).made
        rejected = state_of(app).metrics.registry.get_sample_value("llgbm_rejected_total", {"reason": "jobs"})
        assert rejected == 2
