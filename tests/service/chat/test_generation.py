from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from llgbm.decoding.decoder import DecodeRequest
from llgbm.decoding.sampling import SamplingParams
from service.chat.generation import Generation
from service.chat.text_stream import TextStream
from service.engine.interface import EngineLimits, StoppedError
from service.engine.torch_engine import Engine
from service.errors import ApiError
from service.observability.metrics import Metrics
from tests.service.support.dummy_decoder import DummyDecoder

END = 0


def bytes_to_text(ids: list[int]) -> str:
    return bytes(ids).decode(errors="replace")


@asynccontextmanager
async def generation_of(
    texts: list[str], *, stop: tuple[str, ...] = (), max_tokens: int = 50, held: bool = False
) -> AsyncIterator[tuple[Generation, DummyDecoder, Engine]]:
    """A generation with one row per text and one token per byte; with `held` it stops before the second token."""
    decoder = DummyDecoder(lambda row: [*texts[row.prompt[0]].encode(), END])
    if held:
        decoder.hold.clear()
    engine = Engine(EngineLimits(8, 10_000, 8, 8), Metrics())
    engine.start()
    engine.attach(decoder.renewed)
    rows = [DecodeRequest((i,), None, SamplingParams(max_tokens=max_tokens)) for i in range(len(texts))]
    streams = await engine.submit(rows, [None] * len(rows), timeout=20)
    try:
        yield Generation(streams, [TextStream(bytes_to_text, stop) for _ in rows], None, 1), decoder, engine  # type: ignore[arg-type]
    finally:
        decoder.hold.set()
        await engine.stop()


async def test_each_answer_is_its_rows_text_and_the_counts_are_of_all() -> None:
    texts = ["one", "zwei", "drei €"]
    async with generation_of(texts) as (generation, _, _):
        answers = await generation.answers()
        assert [answer.text for answer in answers] == texts
        assert {answer.finish_reason for answer in answers} == {"stop"}
        assert [len(answer.steps) for answer in answers] == [len(text.encode()) for text in texts]
        assert generation.completion_tokens == sum(len(text.encode()) + 1 for text in texts)
        assert generation.first_token is not None


async def test_pieces_come_as_they_are_made_and_each_answer_ends_once() -> None:
    async with generation_of(["abc", "d"], held=True) as (generation, decoder, _):
        arriving = generation.pieces()
        pieces = [await anext(arriving) for _ in range(2)]
        assert {(piece.index, piece.text) for piece in pieces} == {(0, "a"), (1, "d")}
        decoder.hold.set()
        pieces += [piece async for piece in arriving]
    assert ["".join(p.text for p in pieces if p.index == i) for i in range(2)] == ["abc", "d"]
    assert sorted(p.index for p in pieces if p.finish_reason is not None) == [0, 1]


async def test_a_stop_string_ends_its_row_only() -> None:
    async with generation_of(["ab--cd", "longer text"], stop=("--",)) as (generation, decoder, engine):
        first, second = await generation.answers()
        assert (first.text, first.finish_reason) == ("ab", "stop")
        assert second.text == "longer text"
        while engine.rows:
            await asyncio.sleep(0.001)
        assert len(decoder.removed) <= 1


async def test_what_was_held_back_comes_out_at_the_end() -> None:
    async with generation_of(["ab-"], stop=("--",)) as (generation, _, _):
        (answer,) = await generation.answers()
        assert (answer.text, answer.finish_reason) == ("ab-", "stop")
    async with generation_of(["ab-cd"], stop=("--",), max_tokens=3) as (generation, _, _):
        (answer,) = await generation.answers()
        assert (answer.text, answer.finish_reason) == ("ab-", "length")


async def test_one_failing_row_fails_the_request_and_ends_the_others() -> None:
    async with generation_of(["a" * 40, "b" * 40], held=True) as (generation, decoder, engine):
        engine.end_rows(StoppedError("over"))
        decoder.hold.set()
        with pytest.raises(ApiError) as caught:
            await generation.answers()
        assert caught.value.status_code == 503
        while engine.rows:
            await asyncio.sleep(0.001)
        assert decoder.rows == []
