"""Decoding steps of 8 rows: without an adapter, with one for all rows, and with 4 and 8 different adapters."""

from __future__ import annotations

from functools import partial

from benchmarks.measuring.measure import Result, interleaved, over, rates, result
from benchmarks.measuring.workbench import Workbench, steps
from llgbm.base import Base
from llgbm.lora import LoRAWeights

_ROWS, _STEPS = 8, 3


def run(bench: Workbench) -> list[Result]:
    return [_on(bench, bench.int8, "int8", target=0.85), _on(bench, bench.float32, "float32", target=None)]


def _on(bench: Workbench, base: Base, name: str, *, target: float | None) -> Result:
    rounds = bench.times(18)
    batches: dict[str, list[LoRAWeights | None]] = {
        "no adapter": [None] * _ROWS,
        "1 adapter": [bench.adapters[0]] * _ROWS,
        "4 adapters": [*bench.adapters[:4]] * 2,
        "8 adapters": [*bench.adapters[:8]],
    }
    decoders = {arm: bench.decoder(base, rows, tokens=(rounds + 2) * _STEPS) for arm, rows in batches.items()}

    seconds = interleaved({arm: partial(steps, decoder, _STEPS) for arm, decoder in decoders.items()}, n=rounds)
    return result(
        f"batch of 8, 8 adapters, over batch of 8 without LoRA, {name} base",
        rates(seconds, _ROWS * _STEPS),
        over("8 adapters", "no adapter"),
        arm_unit="tokens/s",
        target=target,
    )
