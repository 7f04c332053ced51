"""Two processes on one store: adapters are complete and none is lost, even if one process dies."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from service.adapters.files import AdapterFiles
from tests.service.adapters.test_store_crashes import whole
from tests.service.support.forked import ForkedService

TASKS = 20


@pytest.fixture
def start(
    tmp_path: Path, tiny_base_path: Path, tiny_encoder_path: Path, tiny_checkpoint_path: Path
) -> Iterator[Callable[[], ForkedService]]:
    """Starts another service on the same store."""
    started: list[ForkedService] = []

    def start() -> ForkedService:
        started.append(ForkedService(tmp_path, [tiny_base_path, tiny_encoder_path, tiny_checkpoint_path]))
        return started[-1]

    yield start
    for service in started:
        service.kill()


async def work(service: ForkedService, seed: int, acknowledged: set[str], deleted: set[str]) -> None:
    """Make adapters that the other process makes too, use them, and delete some that only this process makes."""
    randomness = random.Random(seed)
    async with httpx.AsyncClient(base_url=service.url, timeout=60) as client:
        for number in randomness.sample(range(TASKS), TASKS):
            made = await client.post("/generate-adapter", json={"prompt": f"task {number}", "name": f"n{number}"})
            assert made.status_code in (200, 201), made.text
            acknowledged.add(made.json()["id"])
            chat = await client.post("/chat", json={"adapter_id": f"n{number}", "query": "x", "max_tokens": 2})
            assert chat.status_code == 200, chat.text
            if number % 5 == 0:
                own = await client.post("/generate-adapter", json={"prompt": f"only of {seed}, {number}"})
                assert (await client.delete(f"/adapters/{own.json()['id']}")).status_code == 200
                deleted.add(own.json()["id"])


def test_one_is_killed_again_and_again_and_the_other_fails_no_request(
    tmp_path: Path, start: Callable[[], ForkedService]
) -> None:
    acknowledged: set[str] = set()
    deleted: set[str] = set()
    steady, shaky = start(), start()
    steady.wait_ready()
    shaky.wait_ready()

    async def scenario(shaky: ForkedService) -> None:
        lasting = asyncio.gather(*(work(steady, seed, acknowledged, deleted) for seed in range(3)))
        for seed in (10, 20):
            doomed = asyncio.gather(
                *(work(shaky, seed + client, acknowledged, deleted) for client in range(2)), return_exceptions=True
            )
            await asyncio.sleep(0.3)
            shaky.kill()
            for outcome in await doomed:
                assert outcome is None or isinstance(outcome, httpx.TransportError), outcome
            shaky = start()  # opening sweeps while the other process writes
            await asyncio.to_thread(shaky.wait_ready)
        await work(shaky, 30, acknowledged, deleted)
        await lasting

    asyncio.run(scenario(shaky))
    store = tmp_path / "store"
    found = whole(store)
    assert acknowledged <= found  # no adapter of a successful response is lost
    assert not deleted & found
    assert len(acknowledged) == TASKS
    assert set(AdapterFiles(store).names()) == acknowledged
