import asyncio
import threading
from collections.abc import Iterator

import httpx
import pytest
import torch
from fastapi import FastAPI

from service.engine.worker_threads import worker_threads


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_workers_compute_alone_and_leave_other_threads_theirs() -> None:
    with worker_threads() as executor:
        assert executor.submit(torch.get_num_threads).result() == 1
        executor.submit(lambda: torch.ones(2**20).sum()).result()  # large enough for several threads
        assert executor.submit(torch.get_num_threads).result() == 1
    found: list[int] = []
    other = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    other.start()
    other.join()
    assert found == [torch.get_num_threads()] == [2]


@pytest.mark.usefixtures("two_threads")
async def test_the_application_does_its_work_beside_decoding_on_such_threads(
    dummy_app: tuple[FastAPI, httpx.AsyncClient],
) -> None:
    assert await asyncio.to_thread(torch.get_num_threads) == 1
