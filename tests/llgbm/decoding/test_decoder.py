import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llgbm.base import Base, load_base
from llgbm.config import LoRASpec, lora_spec, model_spec
from llgbm.decoding.decoder import Decoder, DecodeRequest, PrefillError, Step, generate
from llgbm.decoding.sampling import SamplingParams
from llgbm.errors import AdapterMismatchError, ConfigError, ContextLengthError, LLGBMError
from llgbm.functional import FunctionalLoRA
from llgbm.lora import LoRAWeights
from tests.fixtures import random_lora
from tests.llgbm.decoding.decoder_runs import alone, assert_same, cache_bytes, of_row, run

TINY = model_spec("tiny")
SPEC = lora_spec("tiny")
ADAPTERS: list[LoRAWeights | None] = [
    None,
    random_lora(SPEC, 0),
    random_lora(SPEC, 1).to(torch.float16),
    random_lora(LoRASpec.for_model(TINY, rank=2, alpha=4.0, targets=("v_proj", "up_proj")), 2, size=2.0),
]
NAN = random_lora(SPEC, 0).map(lambda t: t * torch.nan)


rows = st.builds(
    DecodeRequest,
    prompt=st.lists(st.integers(0, 255), min_size=1, max_size=30),
    adapter=st.sampled_from(ADAPTERS),
    params=st.builds(
        SamplingParams,
        max_tokens=st.integers(1, 12),
        temperature=st.sampled_from([0.0, 0.0, 1.0]),
        top_p=st.sampled_from([1.0, 0.9]),
        seed=st.integers(0, 9),
        stop_token_ids=st.sampled_from([None, (), tuple(range(40))]),
        logprobs=st.sampled_from([None, 3]),
    ),
)


# Against one forward pass of the whole text


def test_numbers_are_those_of_the_whole_text_without_a_cache(tiny_base: Base) -> None:
    model: Any = tiny_base.model
    for adapter in ADAPTERS:
        row = DecodeRequest([5, 6, 7, 8], adapter, SamplingParams(max_tokens=10, logprobs=20))
        steps = run(Decoder(tiny_base), [row])
        ids = torch.tensor([[*row.prompt, *row.output]])
        with torch.no_grad(), FunctionalLoRA(model).applied([adapter]):
            expected = model(ids).logits[0].log_softmax(-1)
        for place, step in enumerate(steps, start=len(row.prompt) - 1):
            assert step.logprob == pytest.approx(float(expected[place, step.token]), abs=1e-4)
            assert step.token == int(expected[place].argmax())
            for token, value in step.top_logprobs:
                assert value == pytest.approx(float(expected[place, token]), abs=1e-4)


# Rows do not depend on each other


def drawn(prompt: list[int], adapter: int, seed: int) -> DecodeRequest:
    """A row whose first token is drawn from a nucleus."""
    params = SamplingParams(max_tokens=1, temperature=1.0, top_p=0.9, seed=seed, stop_token_ids=())
    return DecodeRequest(prompt, ADAPTERS[adapter], params)


# In both, the draw falls on one of two tokens that are nearly equally likely.
@example(schedule=[(0, [drawn([19], 0, 23), drawn([145], 3, 23)])])
@example(schedule=[(0, [drawn(*row, 2) for row in (([34, 27], 2), ([229, 166], 3), ([191, 177], 0), ([154, 134], 1))])])
@settings(max_examples=25)
@given(schedule=st.lists(st.tuples(st.integers(0, 5), st.lists(rows, min_size=1, max_size=4)), max_size=4))
def test_a_row_that_joins_others_is_the_row_alone(
    tiny_base: Base, schedule: list[tuple[int, list[DecodeRequest]]]
) -> None:
    decoder, steps = Decoder(tiny_base, prefill_tokens=64), list[Step]()
    for wait, joining in schedule:
        for _ in range(wait):
            steps += decoder.step()
        steps += decoder.add(joining)
    steps += run(decoder)
    everyone = [row for _, joining in schedule for row in joining]
    assert len({id(step.row) for step in steps}) == len(everyone)
    for row in everyone:
        assert_same(of_row(steps, row), alone(tiny_base, row))
        assert row.finish_reason == of_row(steps, row)[-1].finish_reason
    assert cache_bytes(decoder._cache) == 0


@settings(max_examples=25)
@given(st.lists(rows, min_size=2, max_size=6), st.data())
def test_rows_that_leave_change_nothing_for_those_that_stay(
    tiny_base: Base, batch: list[DecodeRequest], data: st.DataObject
) -> None:
    decoder = Decoder(tiny_base)
    steps = decoder.add(batch)
    removed = []
    while decoder.rows:
        if data.draw(st.booleans()):
            removed.append(data.draw(st.sampled_from(decoder.rows)))
            assert decoder.remove(removed[-1])
            assert not decoder.remove(removed[-1])
        steps += decoder.step()
    for row in batch:
        expected = alone(tiny_base, row)
        actual = of_row(steps, row)
        if row in removed:
            assert row.finish_reason is None
            assert_same(actual, expected[: len(actual)])
        else:
            assert_same(actual, expected)
    assert cache_bytes(decoder._cache) == 0


def test_steps_of_added_rows_come_in_their_order(tiny_base: Base) -> None:
    batch = [DecodeRequest([1] * length) for length in (3, 40, 1, 7, 2)]
    assert [step.row for step in Decoder(tiny_base, prefill_tokens=50).add(batch)] == batch


def test_an_adapter_whose_numbers_run_away_ends_only_its_own_row(tiny_base: Base) -> None:
    decoder = Decoder(tiny_base)
    params = SamplingParams(max_tokens=8, logprobs=3)
    good = DecodeRequest([1, 2, 3], ADAPTERS[1], params)
    steps = decoder.add([good, DecodeRequest([4] * 9, NAN, params), DecodeRequest([5] * 5, None, params)])
    assert [step.finish_reason for step in steps] == [None, "error", None]
    assert steps[1].token == -1
    steps += decoder.step()
    late = DecodeRequest([6], ADAPTERS[3], params)  # takes the slot of the one that failed
    steps += decoder.add([late])
    steps += run(decoder)
    for row in (good, late):
        assert_same(of_row(steps, row), alone(tiny_base, row))
    with pytest.raises(AdapterMismatchError, match="smaller scale"):
        generate(tiny_base, [[1], [2]], [None, NAN])


def test_a_row_fails_when_its_numbers_run_away_later(tiny_base_path: Path) -> None:
    base = load_base(tiny_base_path)
    expected = alone(base, DecodeRequest([1, 2], None, SamplingParams(max_tokens=6)))
    decoder, layer = Decoder(base), base.model.get_submodule("model.layers.1.mlp.down_proj")
    good, bad = (DecodeRequest([1, 2], None, SamplingParams(max_tokens=6)) for _ in range(2))
    steps = decoder.add([good, bad])

    def spoil(module: torch.nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        output[1] = torch.inf
        return output

    handle = layer.register_forward_hook(spoil)
    steps += decoder.step()
    handle.remove()
    assert of_row(steps, bad)[-1].finish_reason == "error"
    assert_same(of_row(steps + run(decoder), good), expected)


@pytest.mark.parametrize("width", [2, 9])
def test_rows_of_a_mixed_batch_are_the_rows_alone_on_an_int8_base(tiny_base_path: Path, width: int) -> None:
    """To about one quantisation step of an activation, which the last bits of a float32 sum may change."""
    base = load_base(tiny_base_path, storage="int8")
    params = SamplingParams(max_tokens=6, logprobs=20, stop_token_ids=())
    batch = [DecodeRequest([7 * i + 1] * (3 + 2 * i), ADAPTERS[i % 4], params) for i in range(width)]
    steps = run(Decoder(base), batch)
    for row in batch:
        for actual, expected in zip(of_row(steps, row), alone(base, row), strict=True):
            values = dict(expected.top_logprobs)
            assert values[actual.token] == pytest.approx(expected.logprob, abs=0.1)
            assert [v for _, v in actual.top_logprobs] == pytest.approx(list(values.values()), abs=0.1)
            if actual.token != expected.token:
                break  # a near tie: from here on the two texts differ


# The end of a row


def test_tokens_end_at_the_limit_or_before_a_stop_token(tiny_base: Base) -> None:
    (free,) = generate(tiny_base, [[1, 2, 3]], ADAPTERS[1], SamplingParams(max_tokens=20, stop_token_ids=()))
    assert len(free) == 20
    stop = next(token for place, token in enumerate(free) if place > 2 and token not in free[:place])
    row = DecodeRequest([1, 2, 3], ADAPTERS[1], SamplingParams(max_tokens=20, stop_token_ids=(stop, 999)))
    steps = run(Decoder(tiny_base), [row])
    assert row.output == free[: free.index(stop)]
    assert row.finish_reason == "stop"
    assert steps[-1].token == stop
    assert [step.token for step in steps] == [*row.output, stop]
    exact = DecodeRequest(
        [1, 2, 3], ADAPTERS[1], SamplingParams(max_tokens=free.index(stop) + 1, stop_token_ids=(stop,))
    )
    run(Decoder(tiny_base), [exact])
    assert exact.finish_reason == "stop"


def test_stop_tokens_are_those_of_the_generation_config(tiny_base_path: Path) -> None:
    base = load_base(tiny_base_path)
    config: Any = base.model.generation_config
    assert Decoder(base).stop_token_ids == set(config.eos_token_id) == {256, 258}
    (free,) = generate(base, [[1, 2, 3]], None, SamplingParams(max_tokens=20))
    config.eos_token_id = free[4]
    (ended,) = generate(base, [[1, 2, 3]], None, SamplingParams(max_tokens=20))
    assert ended == free[: free.index(free[4])]
    config.eos_token_id = None
    with pytest.raises(ConfigError, match="eos_token_id"):
        Decoder(base)


def test_tokens_that_only_fill_up_the_head_are_never_chosen(tiny_base: Base) -> None:
    padded = dataclasses.replace(tiny_base, tokenizer=range(100))
    (answer,) = generate(padded, [[1, 2, 3]], ADAPTERS[1], SamplingParams(max_tokens=50, stop_token_ids=()))
    (free,) = generate(tiny_base, [[1, 2, 3]], ADAPTERS[1], SamplingParams(max_tokens=50, stop_token_ids=()))
    assert max(answer) < 100 <= max(free)


# Refusals


@pytest.mark.parametrize(
    ("row", "error", "message"),
    [
        (DecodeRequest([]), ConfigError, "at least one token"),
        (DecodeRequest([-1]), ConfigError, "0 to 258"),
        (DecodeRequest([259]), ConfigError, "0 to 258"),
        (DecodeRequest([1], output=[2]), ConfigError, "ran before"),
        (DecodeRequest([1], finish_reason="stop"), ConfigError, "ran before"),
        (
            DecodeRequest([1] * 50, None, SamplingParams(max_tokens=15)),
            ContextLengthError,
            "has 50 tokens and up to 15 more .* holds 64; .* at most 14 tokens",
        ),
        (DecodeRequest([1] * 70), ContextLengthError, "at most 0 tokens"),
        (
            DecodeRequest([1], random_lora(lora_spec("qwen2.5-0.5b"), 0), SamplingParams(max_tokens=1)),
            AdapterMismatchError,
            "another base",
        ),
    ],
)
def test_a_row_that_cannot_run_is_refused_and_no_other_is_added(
    row: DecodeRequest, error: type[LLGBMError], message: str, tiny_base: Base
) -> None:
    decoder = Decoder(tiny_base, max_context=64)
    short = SamplingParams(max_tokens=4)
    running = DecodeRequest([9], None, short)
    steps = decoder.add([running])
    before = dataclasses.replace(row)
    fits = DecodeRequest([1, 2], None, short)
    with pytest.raises(error, match=message):
        decoder.add([fits, row])
    assert decoder.rows == [running]
    assert (row.output, row.finish_reason) == (before.output, before.finish_reason)
    assert_same(of_row(steps + run(decoder), running), alone(tiny_base, running))
    assert not fits.output


def test_context_is_used_to_its_end(tiny_base: Base) -> None:
    decoder = Decoder(tiny_base, max_context=64)
    row = DecodeRequest([1] * 60, None, SamplingParams(max_tokens=4, stop_token_ids=()))
    run(decoder, [row])
    assert row.finish_reason == "length"
    for wrong in (1, 5000):
        with pytest.raises(ConfigError, match="2 to 4096"):
            Decoder(tiny_base, max_context=wrong)


@pytest.mark.parametrize("max_rows", [0, -1])
def test_a_batch_without_room_for_a_row_is_refused(tiny_base: Base, max_rows: int) -> None:
    with pytest.raises(ConfigError, match=f"max_rows must be at least 1, not {max_rows}"):
        generate(tiny_base, [[1]], max_rows=max_rows)


def test_a_row_is_not_added_twice(tiny_base: Base) -> None:
    decoder, row = Decoder(tiny_base), DecodeRequest([1])
    with pytest.raises(ConfigError, match="twice"):
        decoder.add([row, row])
    decoder.add([row])
    with pytest.raises(ConfigError, match="ran before"):
        decoder.add([row])


# The base, and failures


def test_base_is_plain_between_steps(tiny_base: Base) -> None:
    model: Any = tiny_base.model
    ids = torch.arange(20)[None]
    hooks = sum(len(m._forward_hooks) for m in model.modules())
    with torch.no_grad():
        before = model(ids).logits
        decoder = Decoder(tiny_base)
        decoder.add([DecodeRequest([1, 2], ADAPTERS[1]), DecodeRequest([3], ADAPTERS[3])])
        for _ in range(3):
            decoder.step()
            # transformers leaves hooks on a model after a request for hidden states
            assert sum(len(m._forward_hooks) for m in model.modules()) == hooks
            assert torch.equal(model(ids).logits, before)


def test_a_pass_that_fails_is_as_if_it_had_not_been(tiny_base_path: Path) -> None:
    base = load_base(tiny_base_path)
    params = SamplingParams(max_tokens=6, logprobs=2)
    batch = [DecodeRequest([1, 2, 3], ADAPTERS[1], params), DecodeRequest([4] * 20, None, params)]
    expected = [alone(base, row) for row in batch]
    decoder, steps = Decoder(base), list[Step]()

    def fail(*args: object) -> None:
        raise MemoryError("no memory")

    layer = base.model.get_submodule("model.layers.1.mlp.down_proj")
    steps += decoder.add(batch)
    late = DecodeRequest([5, 6], ADAPTERS[3], params)
    for _ in range(2):
        handle = layer.register_forward_pre_hook(fail)
        with pytest.raises(MemoryError):
            decoder.step()
        with pytest.raises(PrefillError, match="no memory"):
            decoder.add([late])
        handle.remove()
        assert set(decoder.rows) == set(batch)
        assert not late.output
        steps += decoder.step()
    steps += decoder.add([late])
    steps += run(decoder)
    for row, wanted in zip([*batch, late], [*expected, alone(base, late)], strict=True):
        assert_same(of_row(steps, row), wanted)


# generate


@pytest.mark.parametrize("max_rows", [1, 2, 16])
def test_generate_does_not_depend_on_the_batch(max_rows: int, tiny_base: Base) -> None:
    prompts = [[i + 1] * (1 + 3 * i) for i in range(6)]
    adapters = [ADAPTERS[i % 4] for i in range(6)]
    params = SamplingParams(max_tokens=9)
    answers = generate(tiny_base, prompts, adapters, params, max_rows=max_rows)
    for prompt, adapter, answer in zip(prompts, adapters, answers, strict=True):
        assert [s.token for s in alone(tiny_base, DecodeRequest(prompt, adapter, params))] == answer
    assert generate(tiny_base, [], None) == []
    assert generate(tiny_base, prompts[:2], ADAPTERS[1], params) == generate(
        tiny_base, prompts[:2], [ADAPTERS[1]] * 2, params
    )


def test_generate_needs_an_adapter_each_and_checks_all_first(tiny_base: Base) -> None:
    with pytest.raises(AdapterMismatchError, match="need one for each"):
        generate(tiny_base, [[1], [2]], [None])
    with pytest.raises(ConfigError, match="at least one token"):
        generate(tiny_base, [[1], []], None)


@pytest.mark.real
def test_rows_of_a_mixed_batch_are_the_rows_alone_on_the_real_base(real_base: Base) -> None:
    spec = lora_spec("qwen2.5-0.5b")
    params = SamplingParams(max_tokens=8, logprobs=5)
    texts = ["The capital of France is", "def add(a, b):", "Eins, zwei, drei,"]
    adapters = [random_lora(spec, 0, size=0.01), None, random_lora(spec, 1, size=0.01)]
    batch = [
        DecodeRequest(real_base.tokenizer(text).input_ids, adapter, params)
        for text, adapter in zip(texts, adapters, strict=True)
    ]
    decoder = Decoder(real_base)
    steps = decoder.add(batch[:2])
    steps += decoder.step()
    steps += decoder.add(batch[2:])
    steps += run(decoder)
    for row in batch:
        assert_same(of_row(steps, row), alone(real_base, row))


def test_rows_that_join_together_with_one_adapter_have_one_copy_of_it(tiny_base: Base) -> None:
    decoder = Decoder(tiny_base)
    params = SamplingParams(max_tokens=9, stop_token_ids=())
    shared, other = ADAPTERS[1], ADAPTERS[3]
    decoder.add([DecodeRequest((1, 2), adapter, params) for adapter in (shared, shared, None, other)])
    decoder.add([DecodeRequest((3,), shared, params)])
    copies = [running.adapter for running in decoder._running]
    assert copies[0] is copies[1] is copies[4]
    assert copies[2] is None
    assert copies[3] is not copies[0]
