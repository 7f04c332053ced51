"""Costs on one base: bytes, tokens per second, and seconds of each phase."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from llgbm.adapters.peft_io import to_bytes
from llgbm.base import Base
from llgbm.config import GeneratorConfig, LoRASpec
from llgbm.delta import DeltaMeter
from llgbm.functional import FunctionalLoRA
from llgbm.generator import create_generator
from llgbm.packed.batch import packed_hidden_states
from llgbm.probes import ProbeSet
from training.phases.gradient_check import random_adapter, random_batch


@dataclass(frozen=True)
class CostConfig:
    """Sizes of the measurements."""

    rows: int = 8
    """Rows in the batch."""
    row_tokens: int = 40
    """Tokens in each row."""
    repeats: int = 2
    """Repetitions of each measurement. The fastest counts, since other processes can only slow one down."""
    basis_ranks: tuple[int, ...] = (32, 64)
    """Basis ranks of the generators to measure."""


def measure_base(base: Base, lora: LoRASpec, probes: ProbeSet, config: CostConfig) -> dict[str, Any]:
    """Bytes of the base and of an adapter, tokens per second forward and with the backward pass, seconds of a delta.

    Every pass has one adapter hooked into all modules of `lora`.
    """
    batch = random_batch(base, config.rows, config.row_tokens)
    adapter, functional = random_adapter(lora), FunctionalLoRA(base.model)

    def forward() -> None:
        with torch.no_grad(), functional.applied([adapter], lengths=batch.lengths):
            packed_hidden_states(base.model, batch)

    def both() -> None:
        with functional.applied([adapter], lengths=batch.lengths):
            packed_hidden_states(base.model, batch).square().mean().backward()

    meter = DeltaMeter(base, probes)

    def delta() -> None:
        with torch.no_grad():
            meter.deltas([adapter])

    return {
        "base_bytes": parameter_bytes(base.model),
        "adapter_bytes": len(to_bytes(adapter.detach())),
        "adapter_parameters": lora.num_parameters,
        "forward_tokens_per_second": batch.num_tokens / fastest(forward, config.repeats),
        "forward_backward_tokens_per_second": batch.num_tokens / fastest(both, config.repeats),
        "delta_seconds": fastest(delta, config.repeats),
    }


def measure_generators(base: Base, lora: LoRASpec, config: CostConfig) -> list[dict[str, Any]]:
    """For each basis rank: number of parameters, and seconds to generate one adapter from its condition."""
    rows = []
    for basis_rank in config.basis_ranks:
        generator = create_generator(base.spec, lora, GeneratorConfig(basis_rank=basis_rank)).eval()
        condition = torch.ones(1, generator.config.condition_size) / generator.config.condition_size**0.5

        def generate(made: Any = generator, wanted: Any = condition) -> None:
            with torch.inference_mode():
                made(wanted)

        rows.append(
            {
                "basis_rank": basis_rank,
                "parameters": sum(p.numel() for p in generator.parameters()),
                "generate_seconds": fastest(generate, config.repeats),
            }
        )
    return rows


def parameter_bytes(model: torch.nn.Module) -> int:
    """Bytes of all parameters and buffers; tied ones count once."""
    tensors: Sequence[torch.Tensor] = [*model.parameters(), *model.buffers()]
    return sum({t.data_ptr(): t.numel() * t.element_size() for t in tensors}.values())


def fastest(work: Callable[[], None], repeats: int) -> float:
    """Seconds of the fastest of `repeats` runs, after one warm-up run."""
    work()
    seconds = []
    for _ in range(max(1, repeats)):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return min(seconds)
