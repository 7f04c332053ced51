"""Decoding speed with one adapter in hooks, relative to the adapter merged into the weights."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial

import torch

from benchmarks.measuring.measure import Result, interleaved, over, rates, result
from benchmarks.measuring.workbench import Workbench, steps
from llgbm.base import Base
from llgbm.linears.frozen_linear import Storage, store_linears
from llgbm.lora import LoRAWeights

_STEPS = 4


def run(bench: Workbench) -> list[Result]:
    return [_on(bench, bench.int8, "int8"), _on(bench, bench.float32, "float32")]


def _on(bench: Workbench, base: Base, storage: Storage) -> Result:
    adapter, rounds = bench.adapters[0], bench.times(24)
    tokens = (rounds + 2) * _STEPS
    decoders = {
        "hooked": bench.decoder(base, [adapter], tokens=tokens),
        "merged": bench.decoder(_merged(bench.float32, adapter, storage), [None], tokens=tokens),
    }

    seconds = interleaved({arm: partial(steps, decoder, _STEPS) for arm, decoder in decoders.items()}, n=rounds)
    return result(
        f"one adapter hooked over merged weights, {storage} base",
        rates(seconds, _STEPS),
        over("hooked", "merged"),
        arm_unit="tokens/s",
        target=0.9,
    )


def _merged(base: Base, adapter: LoRAWeights, storage: Storage) -> Base:
    model = copy.deepcopy(base.model)
    with torch.no_grad():
        for name in adapter.spec.names:
            model.get_parameter(f"{name}.weight").add_(adapter.delta_weight(name))
    store_linears(model, storage)
    return replace(base, model=model)
