"""A long prompt arrives while a stream runs: the stream's longest gap, and the time to the prompt's first token.

The prompt is read in turns of the service's default length, of half and twice that length, and in one turn. As in the
service, the stream gets a token between two turns.
"""

from __future__ import annotations

import time
from collections import deque

from benchmarks.measuring.measure import Result, over, result
from benchmarks.measuring.workbench import Workbench
from llgbm.decoding.decoder import Decoder, DecodeRequest
from llgbm.decoding.sampling import SamplingParams
from service.settings import Settings

_TOKENS = 3000


def run(bench: Workbench) -> list[Result]:
    length = bench.tokens(_TOKENS)
    prompt = (bench.prompt * (length // len(bench.prompt) + 1))[:length]
    default = Settings.model_fields["prefill_tokens"].default
    limits = {f"turns of {limit}": limit for limit in (default // 2, default, 2 * default)} | {"whole": length}
    decoders = {arm: Decoder(bench.int8, prefill_tokens=limit, prefix_tokens=0) for arm, limit in limits.items()}
    gaps: dict[str, list[float]] = {arm: [] for arm in limits}
    first: dict[str, list[float]] = {arm: [] for arm in limits}
    order = deque(decoders.items())
    for number in range(bench.times(6) + 1):
        for arm, decoder in order:
            gap, until_first = _beside(bench, decoder, prompt)
            if number:  # the first round is warm-up
                gaps[arm].append(gap)
                first[arm].append(until_first)
        order.rotate(-1)
    measured = (
        (f"longest gap of a stream while a prompt of {_TOKENS:,} tokens arrives", gaps,
         "Bare decoder, int8 base, an adapter each for stream and prompt."),
        (f"first token of a prompt of {_TOKENS:,} tokens beside a stream", first,
         "In turns, the stream goes on in the meantime."),
    )  # fmt: skip
    return [
        result(
            f"{name}, in turns over whole",
            seconds,
            over(f"turns of {default}", "whole"),
            arm_unit="s",
            higher=False,
            note=note,
        )
        for name, seconds, note in measured
    ]


def _beside(bench: Workbench, decoder: Decoder, prompt: list[int]) -> tuple[float, float]:
    """Seconds of the longest gap between two tokens of the stream, and from the prompt's arrival to its first token."""
    stream = DecodeRequest(bench.prompt, bench.adapters[0], SamplingParams(max_tokens=1000, stop_token_ids=()))
    late = DecodeRequest(prompt, bench.adapters[1], SamplingParams(max_tokens=2, stop_token_ids=()))
    decoder.add([stream])
    decoder.step()
    arrival = last = time.perf_counter()
    gap = until_first = 0.0
    decoder.start(late)
    while not late.output and late.finish_reason is None:
        decoder.prefill()
        until_first = time.perf_counter() - arrival
        decoder.step()
        now = time.perf_counter()
        gap, last = max(gap, now - last), now
    decoder.remove(stream)
    decoder.remove(late)
    return gap, until_first
