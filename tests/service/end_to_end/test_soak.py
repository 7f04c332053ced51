"""Short forms of the soak test; `python -m tests.service.end_to_end.soak --minutes 10` is the long one."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from pathlib import Path

import httpx
import pytest

from llgbm.decoding.decoder import DecodeRequest
from llgbm.lora import LoRAWeights
from service.adapters.store import Lease
from service.chat.generation import Generation
from service.engine.interface import TokenStream
from service.models.loading import LoadModels
from tests.service.end_to_end.soak import ADAPTER_BYTES, main
from tests.service.end_to_end.storm import storm
from tests.service.support.harness import LiveServer, live, make_settings, services_of, state_of, wait_until

PARTS_OF_REQUESTS = (DecodeRequest, Lease, TokenStream, Generation)


def test_after_a_storm_nothing_of_any_request_is_left(tmp_path: Path, load_tiny: LoadModels) -> None:
    """The real decoder, with room for a few adapters; afterwards all objects of the process are counted."""
    settings = make_settings(tmp_path, max_queue=200, max_jobs=200, adapter_memory=4 * ADAPTER_BYTES)
    with live(settings, load_tiny) as server:
        before, (plain, _) = living(), answers(server)
        outcomes = asyncio.run(storm(server.url, streams=64, adapters=32, go_on=lambda done: done < 3))
        assert set(outcomes) == {"finished", "left"}
        assert min(outcomes.values()) > 20
        services = services_of(server.app)
        wait_until(lambda: services.engine.rows == 0)
        wait_until(lambda: set(services.store.resident.values()) <= {0})
        wait_until(lambda: state_of(server.app).active == 0)
        assert len(services.store.resident) <= 4
        assert len(services.store.files.records()) == 33
        after_plain, _ = answers(server)
        assert after_plain == plain  # no adapter remains on the base
        # the torch thread may still have references to its last work
        wait_until(lambda: all(living()[kind] <= before[kind] + 2 for kind in PARTS_OF_REQUESTS))
        assert living()[LoRAWeights] <= before[LoRAWeights] + len(services.store.resident) + 2


def living() -> Counter[type]:
    """Number of objects of each type."""
    gc.collect()
    return Counter(type(each) for each in gc.get_objects())


def answers(server: LiveServer) -> tuple[str, str]:
    """Answers of the plain base and of an adapter to the same question."""
    body = {"prompt": "one more task", "query": "x", "max_tokens": 6, "temperature": 0, "compare_base": True}
    answer = httpx.post(f"{server.url}/chat", json=body, timeout=60).json()
    assert answer["base_answer"] != answer["answer"]
    return answer["base_answer"], answer["answer"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ten_minutes_under_load_leak_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--minutes", "10"]) == 0, capsys.readouterr().out
