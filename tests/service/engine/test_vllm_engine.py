"""Tests for the vLLM engine only: loading adapters, choosing a server, and reporting its failures."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path

import pytest

from llgbm.base import Base
from llgbm.config import lora_spec
from llgbm.lora import LoRAWeights
from service.engine.interface import QueueFullError, RefusedError, StoppedError, UnavailableError, UpstreamError
from service.engine.vllm_engine import VLLMEngine
from service.engine.vllm_fleet import affinity
from service.errors import ApiError
from service.observability.metrics import Metrics
from tests.fixtures import random_lora
from tests.service.support.engine_rigs import (
    FRENCH,
    PLURAL,
    Rig,
    ask,
    fake_for,
    store,
    tokens_of,
    torch_rig,
    unverified,
)
from tests.service.support.fake_vllm import FakeVLLM
from tests.service.support.harness import make_settings, until, wait_until

NAMES = [FRENCH, PLURAL, *(f"lora-{i:024x}" for i in range(6))]
LONG = 700


@pytest.fixture(scope="module")
def adapters() -> dict[str, LoRAWeights]:
    return {name: random_lora(lora_spec("tiny"), seed) for seed, name in enumerate(NAMES)}


@pytest.fixture(scope="module")
def rig(tiny_base: Base, adapters: dict[str, LoRAWeights]) -> Rig:
    """Rows, and the library's answers to them."""
    return torch_rig(tiny_base, adapters)


@pytest.fixture
def folder(tmp_path: Path, tiny_base: Base, adapters: dict[str, LoRAWeights]) -> Path:
    store(tmp_path / "store", adapters, tiny_base)
    return tmp_path


@pytest.fixture
def servers(tiny_base_path: Path) -> Iterator[list[FakeVLLM]]:
    """Two servers; the first is the one that FRENCH prefers."""
    made = [fake_for(tiny_base_path) for _ in range(2)]
    made.sort(key=lambda server: affinity(server.url, FRENCH), reverse=True)
    try:
        yield [server.start() for server in made]
    finally:
        for server in made:
            server.load_gate.set()
            server.stop()


@asynccontextmanager
async def engine_at(folder: Path, servers: list[FakeVLLM], **settings: object) -> AsyncIterator[VLLMEngine]:
    urls = ",".join(f"{server.url}/v1/" for server in servers)
    given = {"vllm_check_seconds": 0.05, **settings}
    engine = VLLMEngine(make_settings(folder, engine="vllm", vllm_url=urls, **given), Metrics(), unverified)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


async def answer(engine: VLLMEngine, rig: Rig, name: str | None) -> None:
    row = rig.row(adapter=name)
    ((*steps,),) = await ask(engine, [row], [name])
    assert [step.token for step in steps] == rig.expected(row)


async def test_an_adapter_is_loaded_at_its_first_use_and_once_for_many_rows(
    folder: Path, rig: Rig, servers: list[FakeVLLM]
) -> None:
    async with engine_at(folder, servers[:1]) as engine:
        rows = [rig.row(adapter=FRENCH) for _ in range(8)]
        answers = await ask(engine, rows, [FRENCH] * 8)
        assert all([step.token for step in steps] == rig.expected(rows[0]) for steps in answers)
        await answer(engine, rig, None)
    assert servers[0].loads == [FRENCH]
    assert set(servers[0].asked) == {FRENCH, rig.base.spec.base_id}


async def test_no_more_adapters_are_kept_there_than_it_has_places(
    folder: Path, rig: Rig, servers: list[FakeVLLM]
) -> None:
    async with engine_at(folder, servers[:1], vllm_max_loras=2, vllm_max_cpu_loras=3) as engine:
        for name in (*NAMES, *NAMES[:2]):
            await answer(engine, rig, name)
            assert len(servers[0].adapters) <= 3
        await asyncio.gather(*(answer(engine, rig, name) for name in NAMES * 2))
        assert len(servers[0].adapters) <= 3
    assert servers[0].unloads[:5] == NAMES[:5]


async def test_after_a_restart_of_the_server_its_adapters_are_loaded_again(
    folder: Path, rig: Rig, servers: list[FakeVLLM]
) -> None:
    async with engine_at(folder, servers[:1], vllm_check_seconds=600) as engine:
        await answer(engine, rig, FRENCH)
        servers[0].adapters.clear()  # forgotten, and the engine does not know it
        await asyncio.gather(*(answer(engine, rig, FRENCH) for _ in range(4)))
        assert servers[0].loads == [FRENCH, FRENCH]


async def test_a_server_that_never_knows_the_adapter_is_an_error_not_a_loop(
    folder: Path, rig: Rig, servers: list[FakeVLLM]
) -> None:
    async with engine_at(folder, servers[:1], vllm_adapters="resolver") as engine:
        with pytest.raises(UpstreamError, match="does not know"):
            await engine.submit([rig.row(adapter=FRENCH)], [FRENCH], timeout=60)
        assert servers[0].asked == [FRENCH, FRENCH]
        servers[0].resolver = folder / "store"
        await answer(engine, rig, FRENCH)
    assert servers[0].unloads == []


async def test_each_adapter_has_its_server_and_the_base_goes_where_it_is_quiet(
    folder: Path, rig: Rig, servers: list[FakeVLLM]
) -> None:
    async with engine_at(folder, servers) as engine:
        for _ in range(3):
            await asyncio.gather(*(answer(engine, rig, name) for name in NAMES))
        loads = [sorted(server.loads) for server in servers]
        assert sorted(loads[0] + loads[1]) == sorted(NAMES)
        assert loads == [
            sorted(n for n in NAMES if affinity(a.url, n) > affinity(b.url, n)) for a, b in (servers, servers[::-1])
        ]
        base = rig.base.spec.base_id
        streams = await engine.submit([rig.row(LONG) for _ in range(4)], [None] * 4, timeout=60)
        assert [server.asked.count(base) for server in servers] == [2, 2]
        for stream in streams:
            stream.cancel()


async def test_a_server_with_all_its_places_in_use_passes_others_on(
    folder: Path, rig: Rig, servers: list[FakeVLLM]
) -> None:
    first, second = servers
    names = (f"lora-{i:024x}" for i in count(100))
    other = next(name for name in names if affinity(first.url, name) > affinity(second.url, name))
    store(folder / "store", {other: rig.adapters[PLURAL]}, rig.base)
    async with engine_at(folder, servers, vllm_max_loras=1) as engine:
        streams = await engine.submit([rig.row(LONG)], [FRENCH], timeout=60)
        await ask(engine, [rig.row(1)], [other])
        streams += await engine.submit([rig.row(LONG)], [FRENCH], timeout=60)
        assert [first.asked, second.asked] == [[FRENCH, FRENCH], [other]]
        for stream in streams:
            stream.cancel()
        await until(lambda: engine.rows == 0)
        await ask(engine, [rig.row(1)], [other])
        assert first.asked[-1] == other


async def test_a_server_that_goes_away_is_passed_over_until_it_is_back(
    folder: Path, rig: Rig, servers: list[FakeVLLM]
) -> None:
    async with engine_at(folder, servers, vllm_check_seconds=600) as engine:
        assert (engine.available, engine.problem) == (True, None)
        await answer(engine, rig, FRENCH)
        await asyncio.to_thread(servers[0].stop)
        await answer(engine, rig, FRENCH)  # this request detects it
        assert [server.loads for server in servers] == [[FRENCH], [FRENCH]]
        assert (engine.available, engine.problem) == (True, "1 of 2 vLLM servers do not answer")
    async with engine_at(folder, servers) as engine:
        await asyncio.to_thread(servers[1].stop)
        await until(lambda: not engine.available)
        with pytest.raises(UnavailableError, match="no vLLM server answers"):
            await engine.submit([rig.row()], [None], timeout=60)
        for server in servers:
            await asyncio.to_thread(server.start)
        await until(lambda: engine.problem is None)
        await answer(engine, rig, FRENCH)


async def test_what_a_restarted_service_finds_loaded_is_not_loaded_again(
    folder: Path, rig: Rig, servers: list[FakeVLLM]
) -> None:
    for _ in range(2):
        async with engine_at(folder, servers[:1]) as engine:
            await answer(engine, rig, FRENCH)
    assert servers[0].loads == [FRENCH]


@pytest.mark.parametrize("fault", ["fail_after", "break_after"])
async def test_an_answer_that_breaks_off_is_an_error_after_what_came(
    folder: Path, rig: Rig, servers: list[FakeVLLM], fault: str
) -> None:
    async with engine_at(folder, servers[:1]) as engine:
        setattr(servers[0], fault, 3)
        (stream,) = await engine.submit([rig.row(LONG)], [None], timeout=60)
        tokens: list[int] = []

        async def read() -> None:
            async for step in stream:
                tokens.append(step.token)

        with pytest.raises(UpstreamError, match="in the middle of an answer"):
            await read()
        assert tokens == rig.expected(rig.row(3))
        await until(lambda: engine.rows == 0)


async def test_a_fault_of_the_request_that_is_found_late_is_told_as_such(
    folder: Path, rig: Rig, servers: list[FakeVLLM]
) -> None:
    async with engine_at(folder, servers[:1]) as engine:
        servers[0].fail_after, servers[0].fail_code = 0, 400
        with pytest.raises(RefusedError, match="EngineCore died"):
            await ask(engine, [rig.row()], [None])


async def test_closing_the_request_ends_the_row_at_the_server(folder: Path, rig: Rig, servers: list[FakeVLLM]) -> None:
    async with engine_at(folder, servers[:1]) as engine:
        stream, other = await engine.submit([rig.row(LONG), rig.row(LONG)], [None] * 2, timeout=60)
        await anext(aiter(stream))
        stream.cancel()
        await asyncio.to_thread(wait_until, lambda: servers[0].running == 1)
        other.cancel()
        await asyncio.to_thread(wait_until, lambda: servers[0].running == 0)
        assert servers[0].aborted == 2
        submitting = asyncio.create_task(engine.submit([rig.row(LONG, adapter=FRENCH)], [FRENCH], timeout=60))
        servers[0].load_gate.clear()
        await until(lambda: engine.rows == 1)
        submitting.cancel()
        await until(lambda: engine.rows == 0)


async def test_rows_that_are_ended_before_they_began_end_too(folder: Path, rig: Rig, servers: list[FakeVLLM]) -> None:
    async with engine_at(folder, servers[:1]) as engine:
        submitting = asyncio.create_task(engine.submit([rig.row()], [None], timeout=60))
        asyncio.get_running_loop().call_soon(engine.end_rows, StoppedError("at once"))
        with pytest.raises(StoppedError, match="at once"):
            await submitting
        assert engine.rows == 0
        await answer(engine, rig, None)


async def test_tokens_that_come_together_are_steps_of_their_own(
    folder: Path, rig: Rig, servers: list[FakeVLLM]
) -> None:
    servers[0].together = 4
    async with engine_at(folder, servers[:1]) as engine:
        row = rig.row(6, logprobs=1)
        (steps,) = await ask(engine, [row], [None])
    assert [step.token for step in steps] == rig.expected(row)
    assert [step.finish_reason for step in steps] == [None] * 5 + ["length"]
    assert all(step.top_logprobs == ((step.token, step.logprob),) for step in steps)


async def test_text_with_other_ends_of_lines_than_newlines_breaks_no_event(
    folder: Path, rig: Rig, servers: list[FakeVLLM]
) -> None:
    servers[0].decode = lambda tokens: "a\x85b\u2028c\u2029d\r\x0b\x0c\x1c"
    async with engine_at(folder, servers[:1]) as engine:
        await answer(engine, rig, None)


@pytest.mark.parametrize(
    ("status", "kind", "told"),
    [
        (400, RefusedError, "too long"),
        (429, QueueFullError, "no room"),
        (500, UpstreamError, "status 500; the log says more"),
        (503, UnavailableError, "send the request again"),
    ],
)
async def test_what_a_server_refuses_is_told_before_the_answer_begins(
    folder: Path, rig: Rig, servers: list[FakeVLLM], status: int, kind: type[Exception], told: str
) -> None:
    async with engine_at(folder, servers[:1]) as engine:
        servers[0].refuse = status, "the prompt is too long"
        with pytest.raises(kind, match=told):
            await engine.submit([rig.row()], [None], timeout=60)
        await until(lambda: engine.available and engine.rows == 0)
        await answer(engine, rig, None)


async def test_an_adapter_that_cannot_be_loaded_names_itself_and_no_path(
    folder: Path, rig: Rig, servers: list[FakeVLLM]
) -> None:
    nobody = "lora-" + "0" * 23 + "f"
    async with engine_at(folder, servers[:1]) as engine:
        with pytest.raises(UpstreamError, match=f"could not load {nobody}") as caught:
            await engine.submit([rig.row()], [nobody], timeout=60)
        assert str(folder) not in str(caught.value)
        assert engine.rows == 0


async def test_an_adapter_is_read_before_a_server_reads_it_and_its_damage_is_told(
    folder: Path, rig: Rig, servers: list[FakeVLLM]
) -> None:
    read: list[str] = []

    async def verify(name: str) -> None:
        read.append(name)
        if name == PLURAL:
            raise ApiError(500, "its files are damaged")

    settings = make_settings(folder, engine="vllm", vllm_url=servers[0].url)
    engine = VLLMEngine(settings, Metrics(), verify)
    await engine.start()
    try:
        for _ in range(2):
            await answer(engine, rig, FRENCH)
        with pytest.raises(ApiError, match="damaged"):
            await engine.submit([rig.row(adapter=PLURAL)], [PLURAL], timeout=60)
    finally:
        await engine.stop()
    assert read == [FRENCH, PLURAL]
    assert servers[0].loads == [FRENCH]


async def test_the_servers_key_and_its_context(folder: Path, rig: Rig, servers: list[FakeVLLM]) -> None:
    servers[0].api_key = "secret"
    async with engine_at(folder, servers[:1]) as engine:
        assert not engine.available
        assert engine.max_context is None
    async with engine_at(folder, servers[:1], vllm_api_key="secret") as engine:
        await answer(engine, rig, FRENCH)
        assert engine.max_context == 4096


async def test_a_server_that_is_slow_to_come_up_takes_rows_when_it_does(
    folder: Path, rig: Rig, servers: list[FakeVLLM]
) -> None:
    servers[0].stop()
    async with engine_at(folder, servers[:1]) as engine:
        assert not engine.available
        await asyncio.to_thread(servers[0].start)
        await until(lambda: engine.available)
        (stream,) = await engine.submit([rig.row()], [None], timeout=60)
        assert await tokens_of(stream) == rig.expected(rig.row())


def test_a_server_that_leaves_moves_its_own_share_only() -> None:
    urls = [f"http://gpu-{i}:8000" for i in range(5)]
    names = [f"lora-{i:024x}" for i in range(2000)]

    def homes(among: list[str]) -> list[str]:
        return [max(among, key=lambda url: affinity(url, name)) for name in names]

    before, after = homes(urls), homes(urls[1:])
    assert all(old == new for old, new in zip(before, after, strict=True) if old != urls[0])
    shares = [before.count(url) / len(names) for url in urls]
    assert all(abs(share - 0.2) < 0.03 for share in shares)
