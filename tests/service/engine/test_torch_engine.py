import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import pytest

from llgbm.decoding.decoder import DecodeRequest
from llgbm.decoding.sampling import SamplingParams
from service.engine.interface import DeadlineError, EngineError, EngineLimits, QueueFullError, StoppedError
from service.engine.torch_engine import Engine
from service.observability.metrics import Metrics
from tests.service.support.dummy_decoder import DummyDecoder
from tests.service.support.harness import until


def row(length: int = 5, prompt: int = 3) -> DecodeRequest:
    return DecodeRequest((1,) * prompt, None, SamplingParams(max_tokens=length))


def endless(_: DecodeRequest) -> Sequence[int]:
    return range(100_000)


@asynccontextmanager
async def engine_with(
    decoder: DummyDecoder, *, max_batch: int = 4, batch_tokens: int = 10**9, max_queue: int = 4
) -> AsyncIterator[tuple[Engine, Metrics]]:
    metrics = Metrics()
    engine = Engine(EngineLimits(max_batch, batch_tokens, max_queue, max_jobs=2), metrics)
    engine.start()
    engine.attach(lambda: decoder)
    try:
        yield engine, metrics
    finally:
        decoder.hold.set()
        await engine.stop()


def value(metrics: Metrics, name: str, **labels: str) -> float:
    return metrics.registry.get_sample_value(name, labels) or 0.0


async def test_rows_join_a_running_batch_and_never_more_than_fit() -> None:
    decoder = DummyDecoder(endless)
    decoder.hold.clear()
    async with engine_with(decoder, max_batch=3, max_queue=10) as (engine, _):
        first = await engine.submit([row(length=8)], [None], timeout=10)
        await until(lambda: len(decoder.rows) == 1)
        others = await engine.submit([row(length=4) for _ in range(5)], [None] * 5, timeout=10)
        decoder.hold.set()

        async def count(stream) -> int:  # type: ignore[no-untyped-def]
            return len([t async for t in stream])

        assert await asyncio.gather(*map(count, [*first, *others])) == [8, 4, 4, 4, 4, 4]
        assert max(decoder.sizes) == 3


async def test_rows_together_have_no_more_tokens_than_the_limit_and_a_longer_one_is_alone() -> None:
    decoder = DummyDecoder(endless)
    decoder.hold.clear()
    async with engine_with(decoder, max_batch=9, batch_tokens=20, max_queue=10) as (engine, _):
        # 8 tokens each, then one of 26, with the prompt
        streams = await engine.submit([*(row(length=5) for _ in range(4)), row(length=23)], [None] * 5, timeout=10)
        streams += await engine.submit([row(length=5)], [None], timeout=10)
        decoder.hold.set()
        assert [len([t async for t in stream]) for stream in streams] == [5, 5, 5, 5, 23, 5]
        assert set(decoder.sizes) <= {1, 2}
        assert decoder.sizes.count(1) >= 23 - 1
        assert decoder.sizes.count(2) >= 2 * (5 - 1)


def long_prompts(decoder: DummyDecoder, *, pieces: int) -> None:
    """Make prompts of 9 tokens take this number of turns."""
    decoder.pieces = lambda row: pieces if len(row.prompt) == 9 else 1


async def test_running_rows_get_a_token_between_two_pieces_of_a_long_prompt() -> None:
    decoder = DummyDecoder(endless)
    long_prompts(decoder, pieces=4)
    decoder.hold.clear()
    async with engine_with(decoder) as (engine, metrics):
        (running,) = await engine.submit([row(length=10)], [None], timeout=10)
        await until(decoder.held.is_set)
        (late,) = await engine.submit([row(length=2, prompt=9)], ["lora-late"], timeout=10)
        decoder.hold.set()
        assert len([t async for t in late]) == 2
        assert len([t async for t in running]) == 10
        assert decoder.turns == [0, 1, 2, 3, 4]
        assert decoder.sizes == [1, 1, 1, 1, 2, 1, 1, 1, 1]
        assert value(metrics, "llgbm_prompt_tokens_total") == 3 + 9
        assert value(metrics, "llgbm_time_to_first_token_seconds_count") == 2
        assert value(metrics, "llgbm_inter_token_seconds_count") == 9 + 1


async def test_a_prompt_on_its_way_has_a_place_in_the_batch_and_waits_no_more() -> None:
    decoder = DummyDecoder(endless)
    long_prompts(decoder, pieces=10**9)
    async with engine_with(decoder, max_batch=1) as (engine, metrics):
        await engine.submit([row(prompt=9)], [None], timeout=10)
        await until(lambda: len(decoder.turns) > 2)
        (waiting,) = await engine.submit([row(length=1)], [None], timeout=10)
        assert (value(metrics, "llgbm_batch_rows"), value(metrics, "llgbm_queue_depth")) == (1, 1)
        decoder.fail_prefill = lambda row: len(row.prompt) == 9
        assert len([t async for t in waiting]) == 1
        assert value(metrics, "llgbm_rows_finished_total", reason="failed") == 1


async def test_a_row_is_cancelled_or_ended_between_two_pieces_of_its_prompt() -> None:
    decoder = DummyDecoder(endless)
    long_prompts(decoder, pieces=10**9)

    def joined(number: int) -> Callable[[], bool]:
        return lambda: len(decoder.added) == number

    async with engine_with(decoder) as (engine, metrics):
        for number, reason in enumerate(("cancelled", "deadline", "stopped"), start=1):
            timeout = 1 if reason == "deadline" else 60
            (stream,) = await engine.submit([row(prompt=9)], [None], timeout=timeout)
            await until(joined(number))
            if reason == "cancelled":
                stream.cancel()
            elif reason == "stopped":
                engine.end_rows(StoppedError("draining"))
            if reason == "cancelled":
                assert [t async for t in stream] == []
            else:
                with pytest.raises(EngineError):
                    _ = [t async for t in stream]
            await until(lambda: engine.rows == 0)
            assert decoder.line == []
            assert value(metrics, "llgbm_rows_finished_total", reason=reason) == 1
        (after,) = await engine.submit([row(length=2)], [None], timeout=10)
        assert len([t async for t in after]) == 2


@pytest.mark.parametrize(("fails", "match"), [("fail_start", None), ("fail_prefill", "MemoryError")])
async def test_a_row_that_fails_at_its_start_or_its_prompt_harms_no_other(fails: str, match: str | None) -> None:
    decoder = DummyDecoder(endless)
    setattr(decoder, fails, lambda row: len(row.prompt) == 7)
    async with engine_with(decoder) as (engine, _):
        rows = [row(length=2), row(prompt=7), row(length=3)]
        first, bad, last = await engine.submit(rows, [None] * 3, timeout=10)
        with pytest.raises(EngineError, match=match):
            _ = [t async for t in bad]
        assert len([t async for t in first]) == 2
        assert len([t async for t in last]) == 3


async def test_a_cancelled_row_is_gone_before_its_next_token() -> None:
    decoder = DummyDecoder(endless)
    decoder.hold.clear()
    async with engine_with(decoder) as (engine, metrics):
        (stream, other) = await engine.submit([row(length=1000), row(length=4)], [None] * 2, timeout=10)
        await until(lambda: len(decoder.rows) == 2)
        stream.cancel()
        decoder.hold.set()
        assert len([t async for t in other]) == 4
        assert decoder.sizes == [2, 1, 1]
        assert len(decoder.removed) == 1
        assert [t async for t in stream] == []
        assert value(metrics, "llgbm_rows_finished_total", reason="cancelled") == 1


async def test_a_waiting_row_that_is_cancelled_never_joins() -> None:
    decoder = DummyDecoder(endless)
    decoder.hold.clear()
    async with engine_with(decoder, max_batch=1) as (engine, _):
        (running,) = await engine.submit([row(length=3)], [None], timeout=10)
        await until(lambda: len(decoder.rows) == 1)
        (waiting,) = await engine.submit([row(length=3)], [None], timeout=10)
        waiting.cancel()
        decoder.hold.set()
        assert len([t async for t in running]) == 3
        await until(lambda: engine.rows == 0)
        assert len(decoder.added) == 1


async def test_a_row_past_its_deadline_ends_with_an_error_running_or_waiting() -> None:
    decoder = DummyDecoder(endless)
    decoder.step_seconds = 0.02
    async with engine_with(decoder, max_batch=1) as (engine, _):
        (running,) = await engine.submit([row(length=10_000)], [None], timeout=0.1)
        (waiting,) = await engine.submit([row(length=3)], [None], timeout=0.05)
        with pytest.raises(DeadlineError):
            _ = [t async for t in running]
        with pytest.raises(DeadlineError):
            _ = [t async for t in waiting]
        assert (engine.rows, len(decoder.rows)) == (0, 0)


async def test_a_failed_step_ends_its_rows_and_the_next_ones_get_a_new_decoder() -> None:
    made: list[DummyDecoder] = []

    def new_decoder() -> DummyDecoder:
        made.append(DummyDecoder(endless))
        if len(made) == 1:
            made[0].fail_step = RuntimeError("broken")
        return made[-1]

    async with engine_with(DummyDecoder(endless)) as (engine, metrics):
        engine.attach(new_decoder)
        streams = await engine.submit([row() for _ in range(2)], [None] * 2, timeout=10)
        for stream in streams:
            with pytest.raises(EngineError):
                _ = [t async for t in stream]
        (after,) = await engine.submit([row(length=2)], [None], timeout=10)
        assert len([t async for t in after]) == 2
        assert len(made) == 2
        assert value(metrics, "llgbm_rows_finished_total", reason="failed") == 2


async def test_after_a_failed_step_prompts_on_their_way_begin_again() -> None:
    made: list[DummyDecoder] = []

    def new_decoder() -> DummyDecoder:
        made.append(DummyDecoder(endless))
        long_prompts(made[-1], pieces=4)
        made[0].fail_step = RuntimeError("broken")
        return made[-1]

    async with engine_with(DummyDecoder(endless)) as (engine, metrics):
        engine.attach(new_decoder)
        running, joining = await engine.submit([row(), row(length=2, prompt=9)], [None] * 2, timeout=10)
        with pytest.raises(EngineError):
            _ = [t async for t in running]
        assert len([t async for t in joining]) == 2
        assert [len(decoder.turns) for decoder in made] == [1, 4]
        assert value(metrics, "llgbm_rows_finished_total", reason="failed") == 1


async def test_jobs_run_in_the_torch_thread_between_tokens_and_are_bounded() -> None:
    decoder = DummyDecoder(endless)
    decoder.step_seconds = 0.02  # the row is still running when it is held below
    async with engine_with(decoder) as (engine, _):
        (stream,) = await engine.submit([row(length=400)], [None], timeout=30)
        name = await engine.run(lambda: threading.current_thread().name)
        assert name == "llgbm-torch"
        with pytest.raises(ZeroDivisionError):
            await engine.run(lambda: 1 // 0)
        decoder.hold.clear()
        decoder.step_seconds = 0
        await until(decoder.held.is_set)
        jobs = [asyncio.ensure_future(engine.run(lambda: None)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(QueueFullError):
            await engine.run(lambda: None)
        decoder.hold.set()
        await asyncio.gather(*jobs)
        assert len([t async for t in stream]) == 400
        await engine.stop()
        with pytest.raises(StoppedError):
            await engine.run(lambda: None)


async def test_the_gateway_metric_names_the_adapters_that_run_and_wait() -> None:
    decoder = DummyDecoder(endless)
    decoder.hold.clear()
    async with engine_with(decoder, max_batch=2) as (engine, metrics):
        await engine.submit([row() for _ in range(2)], ["lora-b", "lora-a"], timeout=10)
        await until(lambda: len(decoder.rows) == 2)
        await engine.submit([row() for _ in range(2)], ["lora-c", None], timeout=10)
        labels = {"max_lora": "2", "running_lora_adapters": "lora-a,lora-b", "waiting_lora_adapters": "lora-c"}
        before = time.time() - 1
        await until(lambda: value(metrics, "llgbm_lora_requests_info", **labels) > before)
