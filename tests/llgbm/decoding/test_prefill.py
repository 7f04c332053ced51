from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llgbm.base import Base, load_base
from llgbm.config import lora_spec
from llgbm.decoding.decoder import Decoder, DecodeRequest, PrefillError, Step
from llgbm.decoding.json_grammar import JsonGrammar
from llgbm.decoding.prefill import Prompt, PromptQueue
from llgbm.decoding.sampling import SamplingParams
from llgbm.errors import ConfigError
from llgbm.lora import LoRAWeights
from tests.fixtures import random_lora
from tests.llgbm.decoding.decoder_runs import alone, assert_same, cache_bytes, of_row

SPEC = lora_spec("tiny")
ADAPTERS: list[LoRAWeights | None] = [None, random_lora(SPEC, 0), random_lora(SPEC, 1).to(torch.float16)]
GREEDY = SamplingParams(max_tokens=6, logprobs=5)


def request(length: int, adapter: LoRAWeights | None = None, params: SamplingParams = GREEDY) -> DecodeRequest:
    return DecodeRequest([(7 * i + 3 * length) % 256 for i in range(length)], adapter, params)


def finish(decoder: Decoder) -> list[Step]:
    """Turns of prompts and steps in turn, as in the service, until no row is left."""
    steps: list[Step] = []
    while decoder._queue or decoder.rows:
        steps += decoder.prefill()
        steps += decoder.step()
    return steps


# The order of turns


def line(limit: int, lengths: Sequence[int]) -> tuple[PromptQueue, list[Prompt]]:
    queue, prompts = PromptQueue(limit), [Prompt(request(length), None) for length in lengths]
    for prompt in prompts:
        queue.put(prompt)
    return queue, prompts


def turn_of(queue: PromptQueue) -> list[int]:
    """Lengths of the next turn's prompts; the short ones leave the line."""
    prompts = [prompt for one_pass in queue.turn() for prompt in one_pass]
    for prompt in prompts:
        if len(prompt.row.prompt) <= queue._limit:
            queue.remove(prompt)
    return sorted(len(prompt.row.prompt) for prompt in prompts)


def test_long_and_short_prompts_take_turns() -> None:
    queue, prompts = line(10, [50, 3, 6, 9, 40])
    assert [turn_of(queue) for _ in range(5)] == [[3, 6], [50], [9], [50], [50]]
    queue.put(Prompt(request(8), None))  # it came last, and yet waits for no more than one piece
    assert turn_of(queue) == [8]
    queue.remove(prompts[0])
    assert [turn_of(queue) for _ in range(2)] == [[40], [40]]
    queue.remove(prompts[4])
    assert not queue
    assert queue.turn() == []


@given(st.integers(1, 60), st.lists(st.integers(1, 80), min_size=1, max_size=20))
def test_a_turn_is_within_the_limit_and_begins_with_the_oldest(limit: int, lengths: list[int]) -> None:
    queue, prompts = line(limit, lengths)
    oldest = {id(next((p for p in prompts if fits == (len(p.row.prompt) <= limit)), None)) for fits in (True, False)}
    passes = queue.turn()
    if len(passes[0][0].row.prompt) > limit:
        assert (len(passes), len(passes[0])) == (1, 1)
    else:
        assert sum(len(one) * max(len(p.row.prompt) for p in one) for one in passes) <= limit
    assert any(id(prompt) in oldest for one in passes for prompt in one)


# Pieces are the whole


@settings(max_examples=30)
@given(
    limit=st.integers(1, 30),
    batch=st.lists(st.tuples(st.integers(1, 70), st.sampled_from(ADAPTERS)), min_size=1, max_size=5),
    joined=st.integers(0, 4),
)
def test_rows_in_pieces_beside_others_are_the_rows_alone_and_whole(
    tiny_base: Base, limit: int, batch: list[tuple[int, LoRAWeights | None]], joined: int
) -> None:
    decoder, steps = Decoder(tiny_base, prefill_tokens=limit), list[Step]()
    rows = [request(length, adapter) for length, adapter in batch]
    for row in rows:
        decoder.start(row)
        for _ in range(joined):
            steps += decoder.prefill()
            steps += decoder.step()
    steps += finish(decoder)
    for row in rows:
        assert_same(of_row(steps, row), alone(tiny_base, row))
    assert cache_bytes(decoder._cache) == 0


def test_a_row_with_a_grammar_or_a_seed_is_the_same_in_pieces(tiny_base: Base) -> None:
    grammar = JsonGrammar({"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]})
    drawn = SamplingParams(max_tokens=8, temperature=1.0, seed=3)
    rows = [
        DecodeRequest(request(40).prompt, ADAPTERS[1], SamplingParams(max_tokens=20), grammar),
        DecodeRequest(request(41).prompt, ADAPTERS[2], drawn),
    ]
    decoder = Decoder(tiny_base, prefill_tokens=7)
    for row in rows:
        decoder.start(row)
    steps = finish(decoder)
    for row in rows:
        assert_same(of_row(steps, row), alone(tiny_base, row))
    text = bytes(rows[0].output).decode()
    assert text.lstrip().startswith("{")


@pytest.mark.parametrize("storage", ["int8", "bfloat16"])
def test_first_tokens_in_pieces_are_those_of_the_whole_on_other_storages(storage: Any, tiny_base_path: Path) -> None:
    base = load_base(tiny_base_path, storage=storage)
    row = request(50, ADAPTERS[1], SamplingParams(max_tokens=1, logprobs=20))
    decoder = Decoder(base, prefill_tokens=12)
    (step,) = decoder.add([row])
    (whole,) = alone(base, row)
    assert step.logprob == pytest.approx(whole.logprob, abs=0.1)
    assert [v for _, v in step.top_logprobs] == pytest.approx([v for _, v in whole.top_logprobs], abs=0.1)


@pytest.mark.real
def test_a_long_prompt_in_pieces_is_the_whole_on_the_real_base(real_base: Base) -> None:
    spec = lora_spec("qwen2.5-0.5b")
    text = "The lighthouse stood on a rock above the grey sea. " * 12 + "Its keeper was called"
    adapter = random_lora(spec, 0, size=0.01)
    row = DecodeRequest(real_base.tokenizer(text).input_ids, adapter, SamplingParams(max_tokens=4, logprobs=5))
    running = DecodeRequest(
        real_base.tokenizer("The capital of France is").input_ids, None, SamplingParams(max_tokens=8, logprobs=5)
    )
    decoder = Decoder(real_base, prefill_tokens=50)
    steps = decoder.add([running])
    decoder.start(row)
    steps += finish(decoder)
    for one in (row, running):
        assert_same(of_row(steps, one), alone(real_base, one))


# Running rows beside a long prompt


def test_a_running_row_has_a_token_after_every_piece(tiny_base: Base) -> None:
    decoder = Decoder(tiny_base, prefill_tokens=10)
    running, late = request(5, None, SamplingParams(max_tokens=20, stop_token_ids=())), request(35, ADAPTERS[1])
    decoder.add([running])
    decoder.start(late)
    for piece in range(3):
        assert decoder.prefill() == []
        assert [step.row for step in decoder.step()] == [running]
        assert len(running.output) == piece + 2
    assert [step.row for step in decoder.prefill()] == [late]
    assert {step.row for step in decoder.step()} == {running, late}


def test_a_row_that_leaves_between_two_pieces_frees_its_states(tiny_base: Base) -> None:
    decoder = Decoder(tiny_base, prefill_tokens=10)
    gone, other = request(35, ADAPTERS[1]), request(36, ADAPTERS[1])
    decoder.start(gone)
    decoder.start(other)
    decoder.prefill()
    (prompt, _) = decoder._queue
    assert prompt.states is not None
    assert prompt.states.get_seq_length() == 10
    assert decoder.remove(gone)
    assert not decoder.remove(gone)
    assert [left.row for left in decoder._queue] == [other]
    steps = finish(decoder)
    assert gone.output == []
    assert_same(steps, alone(tiny_base, other))


def test_numbers_that_run_away_end_only_their_own_row(tiny_base: Base) -> None:
    bad = random_lora(SPEC, 0).map(lambda t: t * torch.nan)
    decoder = Decoder(tiny_base, prefill_tokens=10)
    rows = [request(25), request(26, bad), request(6), request(5, bad), request(27)]
    for row in rows:
        decoder.start(row)
    steps = finish(decoder)
    for row in rows:
        if row.adapter is bad:
            assert [step.finish_reason for step in of_row(steps, row)] == ["error"]
        else:
            assert_same(of_row(steps, row), alone(tiny_base, row))


def test_a_pass_that_fails_names_its_rows_and_harms_no_other(tiny_base_path: Path) -> None:
    base = load_base(tiny_base_path)
    decoder = Decoder(base, prefill_tokens=30)
    running, good, bad, late = request(4), request(12), request(5), request(70)
    calls = [0]

    def fail_at_second(*args: object) -> None:
        calls[0] += 1
        if calls[0] == 2:
            raise MemoryError("no memory")

    steps = decoder.add([running])
    for row in (good, bad, late):
        decoder.start(row)
    handle = base.model.get_submodule("model.layers.1.mlp").register_forward_pre_hook(fail_at_second)
    with pytest.raises(PrefillError, match="MemoryError: no memory") as caught:
        decoder.prefill()
    handle.remove()
    assert caught.value.rows == [bad]
    assert [step.row for step in caught.value.steps] == [good]
    assert isinstance(caught.value.cause, MemoryError)
    steps += [*caught.value.steps, *finish(decoder)]
    for row in (running, good, late):
        assert_same(of_row(steps, row), alone(base, row))
    assert not bad.output
    decoder.start(bad)  # it may come again
    assert_same(finish(decoder), alone(base, request(5)))


def test_refusals(tiny_base: Base) -> None:
    with pytest.raises(ConfigError, match="prefill_tokens must be at least 1, not 0"):
        Decoder(tiny_base, prefill_tokens=0)
    decoder, row = Decoder(tiny_base), request(9)
    decoder.start(row)
    with pytest.raises(ConfigError, match="twice"):
        decoder.start(row)
    with pytest.raises(ConfigError, match="in line"):
        decoder.add([request(3)])
    with pytest.raises(ConfigError, match="at least one token"):
        decoder.start(DecodeRequest([]))
    assert [prompt.row for prompt in decoder._queue] == [row]


def test_rows_with_one_adapter_have_one_copy_of_it_while_they_join(tiny_base: Base) -> None:
    decoder = Decoder(tiny_base, prefill_tokens=8)
    shared = ADAPTERS[2]
    decoder.add([request(4, shared)])
    decoder.start(request(20, shared))
    copies = [*(running.adapter for running in decoder._running), *(prompt.adapter for prompt in decoder._queue)]
    assert copies[0] is copies[1]
