"""Tests for all engines: the torch engine, and the vLLM engine with a fake and with a real server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llgbm.base import Base
from llgbm.config import lora_spec
from llgbm.decoding.decoder import DecodeRequest
from service.engine.interface import DeadlineError, DecodingEngine, QueueFullError, StoppedError
from tests.fixtures import random_lora
from tests.service.support.engine_rigs import FRENCH, PLURAL, Rig, ask, fake_for, tokens_of, torch_rig, vllm_rig
from tests.service.support.harness import until

LONG = 700


REAL = pytest.param("vllm, real", marks=[pytest.mark.vllm, pytest.mark.real, pytest.mark.timeout(900)])


@pytest.fixture(params=["torch", "vllm, fake", REAL])
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
    if request.param == "vllm, real":
        served = request.getfixturevalue("real_vllm")
        # vLLM's CPU kernels apply the adapter of the last place to rows of the base, if rows with adapters are in the
        # batch: https://github.com/vllm-project/vllm/pull/48421
        yield replace(vllm_rig(served.base, served.adapters, served.url, tmp_path), mixes=False)
        return
    base: Base = request.getfixturevalue("tiny_base")
    adapters = {name: random_lora(lora_spec("tiny"), seed) for seed, name in enumerate((FRENCH, PLURAL))}
    if request.param == "torch":
        yield torch_rig(base, adapters)
        return
    fake = fake_for(request.getfixturevalue("tiny_base_path")).start()
    try:
        yield vllm_rig(base, adapters, fake.url, tmp_path)
    finally:
        fake.stop()


async def test_rows_of_the_base_and_of_adapters_together_are_those_of_the_library(rig: Rig) -> None:
    names = [None, None, FRENCH, PLURAL, FRENCH]
    rows = [rig.row(adapter=name, text=text) for name, text in zip(names, "abcde", strict=True)]
    async with rig.running() as (engine, metrics):
        if rig.mixes:
            answers = await ask(engine, rows, names)
        else:
            answers = await ask(engine, rows[:2], names[:2]) + await ask(engine, rows[2:], names[2:])
        await until(lambda: engine.rows == 0)
    assert [[step.token for step in steps] for steps in answers] == [rig.expected(row) for row in rows]
    assert all([step.finish_reason for step in steps] == [None] * 5 + ["length"] for steps in answers)
    count = metrics.registry.get_sample_value
    assert count("llgbm_completion_tokens_total") == 30
    assert count("llgbm_prompt_tokens_total") == sum(len(row.prompt) for row in rows)
    assert count("llgbm_rows_finished_total", {"reason": "length"}) == 5


async def test_a_token_that_stops_is_the_last(rig: Rig) -> None:
    made = rig.expected(rig.row(adapter=FRENCH))
    end = next(i for i in range(1, len(made)) if made[i] not in made[:i])
    row = rig.row(adapter=FRENCH, stop_token_ids=(made[end],))
    async with rig.running() as (engine, _):
        ((*steps, last),) = await ask(engine, [row], [FRENCH])
    assert [step.token for step in steps] == made[:end]
    assert (last.token, last.finish_reason) == (made[end], "stop")


async def test_log_probabilities_are_those_of_the_model(rig: Rig) -> None:
    row = rig.row(1, logprobs=3)
    async with rig.running() as (engine, _):
        ((step,),) = await ask(engine, [row], [None])
    with torch.inference_mode():
        logs = rig.base.model(input_ids=torch.tensor([row.prompt])).logits[0, -1].log_softmax(-1)
    best = logs.topk(3)
    assert [token for token, _ in step.top_logprobs] == best.indices.tolist()
    assert [value for _, value in step.top_logprobs] == pytest.approx(best.values.tolist(), abs=0.01)
    assert step.logprob == pytest.approx(float(best.values[0]), abs=0.01)


async def test_a_seed_decides_what_is_drawn(rig: Rig) -> None:
    def row(seed: int) -> DecodeRequest:
        return rig.row(8, temperature=1.0, seed=seed)

    async with rig.running() as (engine, _):
        first, again, *others = await ask(engine, [row(1), row(1), row(2), row(3)], [None] * 4)
    tokens = [[step.token for step in steps] for steps in (first, again, *others)]
    assert tokens[0] == tokens[1]
    assert len({tuple(t) for t in tokens}) > 1


async def test_a_cancelled_row_ends_without_an_error_and_harms_no_other(rig: Rig) -> None:
    async with rig.running() as (engine, metrics):
        endless, other = await engine.submit([rig.row(LONG), rig.row(4)], [None, None], timeout=120)
        endless.cancel()
        assert await tokens_of(other) == rig.expected(rig.row(4))
        assert await tokens_of(endless) == []
        await until(lambda: engine.rows == 0)
        assert metrics.registry.get_sample_value("llgbm_rows_finished_total", {"reason": "cancelled"}) == 1


async def test_a_row_that_a_stop_string_ended_is_counted_as_stopped_and_not_as_cancelled(rig: Rig) -> None:
    async with rig.running() as (engine, metrics):
        (endless,) = await engine.submit([rig.row(LONG)], [None], timeout=120)
        endless.cancel("stop")
        endless.cancel()  # as the owner of the stream does at the end
        await until(lambda: engine.rows == 0)
        count = metrics.registry.get_sample_value
        assert count("llgbm_rows_finished_total", {"reason": "stop"}) == 1
        assert not count("llgbm_rows_finished_total", {"reason": "cancelled"})


async def test_a_row_past_its_deadline_ends_with_an_error(rig: Rig) -> None:
    async with rig.running() as (engine, _):
        with pytest.raises(DeadlineError, match=r"after 0\.2 seconds"):
            await ask(engine, [rig.row(LONG)], [None], timeout=0.2)
        await until(lambda: engine.rows == 0)


async def test_rows_that_have_no_room_are_refused_all_of_them(rig: Rig) -> None:
    async with rig.running(max_batch=2, max_queue=1) as (engine, metrics):
        running = await engine.submit([rig.row(LONG), rig.row(LONG)], [None] * 2, timeout=120)
        with pytest.raises(QueueFullError) as caught:
            await engine.submit([rig.row()] * 2, [None] * 2, timeout=120)
        assert caught.value.retry_after >= 1
        assert engine.rows == 2
        assert metrics.registry.get_sample_value("llgbm_rejected_total", {"reason": "queue"}) == 1
        running += await engine.submit([rig.row()], [None], timeout=120)
        for stream in running:
            stream.cancel()
        await until(lambda: engine.rows == 0)
        assert len((await ask(engine, [rig.row(2)], [None]))[0]) == 2


async def test_ending_running_and_waiting_rows_leaves_the_engine_working(rig: Rig) -> None:
    async with rig.running(max_batch=1) as (engine, _):
        streams = await engine.submit([rig.row(LONG), rig.row(LONG)], [None, None], timeout=120)
        engine.end_rows(StoppedError("draining"))
        for stream in streams:
            with pytest.raises(StoppedError, match="draining"):
                await tokens_of(stream)
        assert len((await ask(engine, [rig.row(2)], [None]))[0]) == 2


async def test_stopping_ends_running_and_waiting_rows_with_an_error(rig: Rig) -> None:
    async with rig.running(max_batch=1) as (engine, _):
        streams = await engine.submit([rig.row(LONG), rig.row(LONG)], [None, None], timeout=120)
        await engine.stop()
        for stream in streams:
            with pytest.raises(StoppedError):
                await tokens_of(stream)
        with pytest.raises(StoppedError):
            await engine.submit([rig.row()], [None], timeout=1)
        await engine.stop()


async def test_the_gateway_metric_names_the_adapters_that_run(rig: Rig) -> None:
    async with rig.running() as (engine, metrics):
        names = [PLURAL, FRENCH, None]
        streams = await engine.submit([rig.row(LONG, adapter=name) for name in names], names, timeout=120)

        def running(engine: DecodingEngine = engine) -> list[str]:
            return [
                sample.labels["running_lora_adapters"]
                for family in metrics.registry.collect()
                for sample in family.samples
                if sample.name == "llgbm_lora_requests_info"
            ]

        await until(lambda: running() == [f"{FRENCH},{PLURAL}"])
        for stream in streams:
            stream.cancel()
        await until(lambda: engine.rows == 0)
        await asyncio.sleep(0)
        assert running() == [""]
