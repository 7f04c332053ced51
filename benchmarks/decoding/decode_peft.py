"""One answer with one adapter: our decoding in int8 and float32, against transformers' `generate` with PEFT in float32.

All arms have the same prompt and generate the same number of tokens. Times include the prompt's pass.
"""

from __future__ import annotations

from benchmarks.measuring.measure import Result, interleaved, over, rates, result
from benchmarks.measuring.workbench import Workbench, transformers_generate
from llgbm.base import Base
from llgbm.decoding.decoder import generate
from llgbm.decoding.sampling import SamplingParams

_TOKENS = 32


def run(bench: Workbench) -> list[Result]:
    adapter, prompt = bench.adapters[0], bench.prompt
    tokens = bench.tokens(_TOKENS)
    params = SamplingParams(max_tokens=tokens, stop_token_ids=())
    peft = bench.peft_model(1)

    def ours(base: Base) -> None:
        generate(base, [prompt], adapter, params)

    seconds = interleaved(
        {
            "int8": lambda: ours(bench.int8),
            "float32": lambda: ours(bench.float32),
            "PEFT": lambda: transformers_generate(peft, prompt, tokens),
        },
        n=bench.times(9),
    )
    speeds = rates(seconds, tokens)
    note = f"{len(prompt)} prompt tokens, {tokens} new ones."
    return [
        result(
            "one answer, int8 base + 1 adapter, over transformers generate in float32 with PEFT",
            {arm: speeds[arm] for arm in ("int8", "PEFT")},
            over("int8", "PEFT"),
            arm_unit="tokens/s",
            target=3.0,
            note=note,
        ),
        result(
            "one answer, float32 base + 1 adapter, over transformers generate in float32 with PEFT",
            {arm: speeds[arm] for arm in ("float32", "PEFT")},
            over("float32", "PEFT"),
            arm_unit="tokens/s",
            note=note,
        ),
    ]
