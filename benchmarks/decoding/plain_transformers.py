"""Decoding speed of the plain base in float32, relative to the same model in transformers' `generate`."""

from __future__ import annotations

from benchmarks.measuring.measure import Result, interleaved, over, rates, result
from benchmarks.measuring.workbench import Workbench, transformers_generate
from llgbm.decoding.decoder import generate
from llgbm.decoding.sampling import SamplingParams

_TOKENS = 32


def run(bench: Workbench) -> list[Result]:
    tokens = bench.tokens(_TOKENS)
    params = SamplingParams(max_tokens=tokens, stop_token_ids=())

    seconds = interleaved(
        {
            "ours": lambda: generate(bench.float32, [bench.prompt], None, params),
            "transformers": lambda: transformers_generate(bench.float32.model, bench.prompt, tokens),
        },
        n=bench.times(12),
    )
    return [
        result(
            "plain base in our engine over plain transformers, float32",
            rates(seconds, tokens),
            over("ours", "transformers"),
            arm_unit="tokens/s",
            target=0.98,
            note=f"{len(bench.prompt)} prompt tokens, {tokens} new ones.",
        )
    ]
