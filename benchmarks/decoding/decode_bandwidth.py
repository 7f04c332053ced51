"""Decoding speed with the int8 base and one adapter, relative to the limit of memory bandwidth.

Every token reads all weights once. The limit in tokens per second is the memory bandwidth of the threads, measured in
the same rounds, divided by the bytes of the int8 Linears and the adapter.
"""

from __future__ import annotations

from functools import partial

import torch

from benchmarks.measuring.measure import Result, interleaved, over, result
from benchmarks.measuring.workbench import Workbench, steps
from llgbm.linears.frozen_linear import Int8Linear

_BLOCK_BYTES = 256 * 2**20
_STEPS = 4


def run(bench: Workbench) -> list[Result]:
    adapter, rounds = bench.adapters[0], bench.times(30)
    linears = [m for m in bench.int8.model.modules() if isinstance(m, Int8Linear)]
    total = sum(m.in_features * m.out_features for m in linears) + adapter.num_bytes
    decoder = bench.decoder(bench.int8, [adapter], tokens=(rounds + 2) * _STEPS)
    block = torch.zeros(_BLOCK_BYTES // 4)

    seconds = interleaved({"read": block.sum, "decode": partial(steps, decoder, _STEPS)}, n=rounds, warm_up=2)
    measured = {
        "limit": [_BLOCK_BYTES / s / total for s in seconds["read"]],
        "decode": [_STEPS / s for s in seconds["decode"]],
    }
    return [
        result(
            "decode, int8 base + 1 adapter, over the bandwidth limit for int8",
            measured,
            over("decode", "limit"),
            arm_unit="tokens/s",
            target=0.6,
            note=f"{total / 1e6:.0f} MB are read for a token, {adapter.num_bytes / 1e6:.0f} MB of them the adapter.",
        )
    ]
