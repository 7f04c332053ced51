"""Checks that all A and B of an adapter get gradients through a base, and measures the memory this takes.

Each measurement runs in a fresh process, so that earlier allocations do not count.
"""

from __future__ import annotations

import multiprocessing
import re
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llgbm.base import Base, load_base
from llgbm.config import LoRASpec
from llgbm.errors import ConfigError
from llgbm.fitting.task_losses import label_logits, sft_loss
from llgbm.functional import FunctionalLoRA
from llgbm.linears.frozen_linear import Storage
from llgbm.lora import LoRAWeights
from llgbm.packed.batch import PackedBatch, Row, pack

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class GradientCheck:
    """Result of one forward and backward pass.

    Attributes:
        tensors: number of A and B tensors of the adapter.
        reached: number of these that got a finite, nonzero gradient.
        tokens: tokens that the base read.
        seconds: wall time of both passes.
        peak_bytes: rise of the process's resident memory above its value before; None on a system without /proc.
    """

    tensors: int
    reached: int
    tokens: int
    seconds: float
    peak_bytes: int | None


def check_in_own_process(
    base: str, storage: Storage, rank: int, rows: int, row_tokens: int, *, recompute: bool
) -> GradientCheck:
    """Load a base in a fresh process and check it there.

    Args:
        base: hub id or folder.
        rank: rank of the adapter, which changes all projections.
        rows: rows in the batch.
        row_tokens: tokens in each row.
        recompute: use activation checkpointing.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        return pool.submit(_load_and_check, base, storage, rank, rows, row_tokens, recompute).result()


def check_gradients(base: Base, spec: LoRASpec, batch: PackedBatch, *, recompute: bool) -> GradientCheck:
    """Run a batch forward and backward with a random adapter and check every gradient."""
    adapter = random_adapter(spec)
    before = _resident(reset=True)
    began = time.monotonic()
    logits = label_logits(base, FunctionalLoRA(base.model), batch, [adapter], recompute=recompute)
    sft_loss(logits, batch).backward()
    seconds = time.monotonic() - began
    peak = _resident(peak=True)
    gradients = [t.grad for t in adapter.tensors]
    good = [g for g in gradients if g is not None and bool(torch.isfinite(g).all()) and bool(g.abs().max() > 0)]
    rise = None if before is None or peak is None else max(0, peak - before)
    return GradientCheck(len(gradients), len(good), batch.num_tokens, seconds, rise)


def random_adapter(spec: LoRASpec) -> LoRAWeights:
    """A small random adapter whose A and B are leaves with gradients. B is nonzero, because A gets no gradient else."""
    generator = torch.Generator().manual_seed(0)

    def draw(rows: int, columns: int) -> Any:
        return (torch.randn(rows, columns, generator=generator) * 0.02).requires_grad_()

    return LoRAWeights(
        spec,
        {m.name: draw(spec.rank, m.in_features) for m in spec.modules},
        {m.name: draw(m.out_features, spec.rank) for m in spec.modules},
    )


def random_batch(base: Base, rows: int, row_tokens: int) -> PackedBatch:
    """One group of rows of random tokens; the last quarter of each row is its answer.

    Raises:
        ConfigError: there are no rows, or rows of fewer than four tokens.
    """
    if rows < 1 or row_tokens < 4:
        raise ConfigError(f"need at least one row of at least four tokens, not {rows} of {row_tokens}")
    generator = torch.Generator().manual_seed(0)
    embedding: Any = base.model.get_submodule("model.embed_tokens")
    ids = torch.randint(embedding.num_embeddings, (rows, row_tokens), generator=generator).tolist()
    split = row_tokens - row_tokens // 4
    return pack([[Row(row[:split], row[split:]) for row in ids]])


def _load_and_check(
    name: str, storage: Storage, rank: int, rows: int, row_tokens: int, recompute: bool
) -> GradientCheck:
    base = load_base(name, storage=storage)
    spec = LoRASpec.for_model(base.spec, rank=rank, alpha=2.0 * rank)
    return check_gradients(base, spec, random_batch(base, rows, row_tokens), recompute=recompute)


def _resident(*, peak: bool = False, reset: bool = False) -> int | None:
    """Resident memory of this process in bytes, now or its peak since the last reset; None without /proc."""
    if not _STATUS.exists():
        return None
    if reset:
        _RESET.write_text("5", encoding="ascii")  # 5 resets the peak VmHWM, see proc(5)
    found = re.search(
        rf"{'VmHWM' if peak else 'VmRSS'}:\s+(\d+) kB", _STATUS.read_text(encoding="ascii", errors="replace")
    )
    return int(found[1]) * 1024 if found else None
