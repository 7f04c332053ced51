"""Prompts that begin alike: what one row has read is not read again, and nothing changes but the time."""

from __future__ import annotations

import gc
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llgbm.base import Base
from llgbm.config import lora_spec
from llgbm.decoding.decoder import Decoder, DecodeRequest, PrefillError, Step
from llgbm.decoding.prefix_cache import Beginning, PrefixCache
from llgbm.decoding.sampling import SamplingParams
from llgbm.lora import LoRAWeights
from tests.fixtures import random_lora
from tests.llgbm.decoding.decoder_runs import alone, assert_same, of_row, run

SPEC = lora_spec("tiny")
ADAPTERS: list[LoRAWeights | None] = [None, random_lora(SPEC, 0), random_lora(SPEC, 1)]
HEADS = [[(7 * i + 3) % 256 for i in range(40)], [(5 * i + 1) % 256 for i in range(21)]]


def request(prompt: Sequence[int], adapter: LoRAWeights | None = None, tokens: int = 4) -> DecodeRequest:
    return DecodeRequest(prompt, adapter, SamplingParams(max_tokens=tokens, logprobs=3, stop_token_ids=()))


PROMPTS = st.builds(
    lambda head, length, rest: [*HEADS[head][:length], *rest],
    st.integers(0, 1),
    st.integers(0, 40),
    st.lists(st.integers(0, 3), min_size=1, max_size=12),
)


@settings(max_examples=40)
@given(
    limit=st.sampled_from([5, 16, 64]),
    kept=st.sampled_from([1, 40, 200]),
    asked=st.lists(st.tuples(PROMPTS, st.sampled_from(ADAPTERS), st.integers(1, 9)), min_size=1, max_size=12),
    steps_between=st.integers(0, 6),
)
def test_rows_that_begin_alike_are_the_rows_alone(
    tiny_base: Base,
    limit: int,
    kept: int,
    asked: list[tuple[list[int], LoRAWeights | None, int]],
    steps_between: int,
) -> None:
    decoder, steps = Decoder(tiny_base, prefill_tokens=limit, prefix_tokens=kept), list[Step]()
    rows = [request(prompt, adapter, tokens) for prompt, adapter, tokens in asked]
    for row in rows:
        decoder.start(row)
        for _ in range(steps_between):
            steps += decoder.prefill()
            steps += decoder.step()
    while decoder._queue or decoder.rows:
        steps += decoder.prefill()
        steps += decoder.step()
    for row in rows:
        assert_same(of_row(steps, row), alone(tiny_base, row))
        assert row.known_tokens in range(0, len(row.prompt), 8)
    assert decoder._prefixes is not None
    assert decoder._prefixes.tokens <= kept


def test_the_next_turn_of_a_conversation_reads_only_what_is_new(tiny_base: Base) -> None:
    decoder = Decoder(tiny_base)
    first = request(HEADS[0], ADAPTERS[1], tokens=9)
    run(decoder, [first])
    second = request([*HEADS[0], *first.output, 1, 2, 3], ADAPTERS[1])
    steps = run(decoder, [second])
    assert (first.known_tokens, second.known_tokens) == (0, 48)  # 40 and 9, of which the last was not read
    assert_same(steps, alone(tiny_base, second))
    others = [request(second.prompt, adapter) for adapter in (ADAPTERS[2], None)]
    run(decoder, others)
    assert [row.known_tokens for row in others] == [0, 0]


def test_a_row_takes_over_from_one_that_is_still_running(tiny_base: Base) -> None:
    decoder = Decoder(tiny_base)
    long, short = request(HEADS[0], tokens=50), request([*HEADS[0][:30], 9, 9, 9])
    steps = decoder.add([long])
    steps += run(decoder, [short])
    assert short.known_tokens == 24
    for row in (long, short):
        assert_same(of_row(steps, row), alone(tiny_base, row))


def test_a_long_prompt_of_which_little_is_new_takes_one_turn(tiny_base: Base) -> None:
    decoder = Decoder(tiny_base, prefill_tokens=10)
    run(decoder, [request(HEADS[0])])
    again, other = request([*HEADS[0], 5]), request(HEADS[0][::-1])
    decoder.start(other)
    decoder.start(again)
    assert [step.row for step in decoder.prefill()] == [again]
    assert decoder.prefill() == []
    assert again.known_tokens == 40


def test_nothing_is_taken_over_without_room_for_it(tiny_base: Base) -> None:
    decoder = Decoder(tiny_base, prefix_tokens=0)
    rows = [request(HEADS[0]) for _ in range(3)]
    for row in rows:
        run(decoder, [row])
    assert [row.known_tokens for row in rows] == [0, 0, 0]


def test_a_row_whose_numbers_are_not_finite_leaves_nothing_behind(tiny_base: Base) -> None:
    broken = random_lora(SPEC, 3).map(lambda t: torch.full_like(t, math.nan))
    decoder = Decoder(tiny_base)
    for _ in range(2):
        row = request(HEADS[0], broken)
        assert [step.finish_reason for step in run(decoder, [row])] == ["error"]
        assert row.known_tokens == 0


def test_a_pass_that_fails_leaves_rows_as_they_were(tiny_base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = Decoder(tiny_base)
    run(decoder, [request(HEADS[0])])
    again = request([*HEADS[0], 5])

    def fails(*_: object) -> None:
        raise RuntimeError("not enough memory")

    with monkeypatch.context() as patch:
        patch.setattr(decoder._reader, "read", fails)
        with pytest.raises(PrefillError):
            decoder.add([again])
    assert_same(run(decoder, [again]), alone(tiny_base, again))


def test_a_plan_that_lost_what_it_builds_on_is_made_again(tiny_base: Base) -> None:
    decoder = Decoder(tiny_base, prefill_tokens=32, prefix_tokens=120)
    heads = [[(7 * i + 3 * n) % 256 for i in range(n)] for n in (40, 47)]
    for head in heads:
        run(decoder, [request(head)])
    # the first row ends at once, and what is kept of it takes the place of what the others build on
    rows = [request([*heads[1], *range(10)], tokens=1), request([*heads[0], 4, 5]), request([*heads[0], 6, 7])]
    for row in rows:
        decoder.start(row)
    steps = decoder.prefill()
    assert [step.row for step in steps] == rows[:1]
    assert [prompt.row for prompt in decoder._queue] == rows[1:]
    while decoder._queue or decoder.rows:
        steps += decoder.prefill()
        steps += decoder.step()
    for row in rows:
        assert_same(of_row(steps, row), alone(tiny_base, row))


def test_rows_leave_also_if_there_is_no_memory_to_keep_them(tiny_base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = Decoder(tiny_base)
    rows = [request(HEADS[0], tokens=4), request(HEADS[1], tokens=9)]
    steps = decoder.add(rows)

    def fails(*_: object) -> None:
        raise OSError(12, "not enough memory")

    with monkeypatch.context() as patch:
        patch.setattr("llgbm.decoding.prefix_cache.mapped_zeros", fails)
        patch.setattr("llgbm.decoding.kv_cache.mapped_zeros", fails)  # the cache cannot shrink either
        while decoder.rows:
            steps += decoder.step()
    assert decoder._prefixes is not None
    assert decoder._prefixes.tokens == 0
    for row in rows:
        assert_same(of_row(steps, row), alone(tiny_base, row))


# What is kept


def beginning(*tokens: int) -> Beginning:
    return Beginning(np.array(tokens), lambda: [torch.tensor(tokens)[None, :, None].to(torch.bfloat16)] * 2)


def kept(cache: PrefixCache, adapter: LoRAWeights | None) -> list[tuple[int, ...]]:
    return [tuple(one.tokens.tolist()) for one in cache.of(adapter)]


def test_a_longer_beginning_takes_the_place_of_its_parts_and_a_part_is_not_kept_twice() -> None:
    cache, ten, twelve, other = PrefixCache(100), tuple(range(10)), tuple(range(12)), tuple(range(50, 60))
    for tokens in (ten, other, twelve, ten):
        cache.put(None, beginning(*tokens))
    assert kept(cache, None) == [twelve, other]
    cache.put(ADAPTERS[1], beginning(*ten))
    assert kept(cache, None) == [twelve, other]
    assert kept(cache, ADAPTERS[1]) == [ten]


def test_what_was_used_last_is_kept_longest() -> None:
    cache = PrefixCache(29)
    one, two, three = (tuple(range(first, first + 10)) for first in (0, 100, 200))
    cache.put(None, beginning(*one))
    cache.put(None, beginning(*two))
    cache.use(next(b for b in cache.of(None) if b.tokens[0] == one[0]))
    cache.put(None, beginning(*three))
    assert kept(cache, None) == [three, one]
    cache.put(None, beginning(*range(305, 310)))  # too little to be taken over
    assert kept(cache, None) == [three, one]
    cache.put(None, beginning(*range(300, 400)))  # half of the room is kept of it
    assert kept(cache, None) == [tuple(range(300, 314)), three]
    states = next(cache.of(None)).states()
    assert [layer.shape for layer in states] == [(1, 14, 1)] * 2
    assert states[1].dtype == torch.bfloat16
    assert states[1][0, :, 0].tolist() == torch.arange(300, 314).to(torch.bfloat16).tolist()


def test_an_adapter_that_is_gone_takes_its_beginnings_with_it() -> None:
    cache, adapter = PrefixCache(100), random_lora(SPEC, 4)
    cache.put(adapter, beginning(*range(10)))
    cache.put(None, beginning(*range(10)))
    del adapter
    gc.collect()
    cache.put(None, beginning(*range(50, 60)))
    assert cache.tokens == 20
    assert kept(cache, None) == [tuple(range(50, 60)), tuple(range(10))]
