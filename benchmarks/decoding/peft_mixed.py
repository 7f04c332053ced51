"""A batch of 8 rows with 1 to 8 adapters: our decoding against PEFT's mixed batches (`adapter_names`).

Both sides have the same prompts and the same number of new tokens. All prompts are equally long, so neither side pads.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from benchmarks.measuring.measure import Result, interleaved, over, rates, result
from benchmarks.measuring.workbench import Workbench
from llgbm.base import Base
from llgbm.decoding.decoder import generate
from llgbm.decoding.sampling import SamplingParams

_ROWS, _TOKENS = 8, 16


def run(bench: Workbench) -> list[Result]:
    prompts = [bench.prompt] * _ROWS
    tokens = bench.tokens(_TOKENS)
    params = SamplingParams(max_tokens=tokens, stop_token_ids=())
    peft, ids = bench.peft_model(_ROWS), torch.tensor(prompts)

    def ours(base: Base, count: int) -> None:
        generate(base, prompts, [bench.adapters[row % count] for row in range(_ROWS)], params)

    def with_peft(count: int) -> None:
        with torch.inference_mode():
            peft.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                adapter_names=[str(row % count) for row in range(_ROWS)],
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                do_sample=False,
            )

    arms: dict[str, Callable[[], None]] = {}
    for count in (1, 8) if bench.quick else (1, 2, 4, 8):
        arms[f"int8, {count}"] = partial(ours, bench.int8, count)
        arms[f"float32, {count}"] = partial(ours, bench.float32, count)
        arms[f"PEFT, {count}"] = partial(with_peft, count)
    speeds = rates(interleaved(arms, n=bench.times(4)), _ROWS * tokens)
    note = f"{len(bench.prompt)} prompt tokens and {tokens} new ones a row. The number of adapters follows the comma."

    def of(kind: str) -> dict[str, list[float]]:
        return {arm: numbers for arm, numbers in speeds.items() if arm.startswith(kind)}

    return [
        result(
            f"batch of 8, 8 adapters, {kind} base, over PEFT adapter_names in float32",
            of(kind) | of("PEFT"),
            over(f"{kind}, 8", "PEFT, 8"),
            arm_unit="tokens/s",
            target=1.5,
            note=note,
        )
        for kind in ("int8", "float32")
    ] + [
        result(
            f"batch of 8, 8 adapters over 1 adapter, {name}",
            of(kind),
            over(f"{kind}, 8", f"{kind}, 1"),
            arm_unit="tokens/s",
            note="1 is flat in the number of adapters.",
        )
        for kind, name in (("int8", "int8 base"), ("float32", "float32 base"), ("PEFT", "PEFT"))
    ]
