"""A step of `python -m training amortise`, which needs no base: in float32, and with matrix products in bfloat16.

There are 48 conditions; the target of each is the cores of another condition. The trunk is trained with Muon.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.measure import Result, interleaved, over, rates, result
from benchmarks.workbench import Workbench
from llgbm.checkpoint import load_generator
from llgbm.fitting.core_loss import CoreMetric, CoreObjective
from llgbm.generator import LoRAGenerator
from llgbm.packing import TaskGroup, TrainingBatch
from llgbm.training import TrainingConfig, train

_CONDITIONS = 48
_DTYPES = ("bfloat16", "float32")


def run(bench: Workbench) -> list[Result]:
    generators = {dtype: load_generator(bench.checkpoint_folder).generator.requires_grad_(True) for dtype in _DTYPES}
    batch, objective = _problem(generators["float32"])
    gradients = {dtype: _gradient(generator, dtype, objective, batch) for dtype, generator in generators.items()}
    steps = {dtype: _step(generator, dtype, objective, batch) for dtype, generator in generators.items()}
    speeds = rates(interleaved(steps, n=bench.times(9)), 1)
    cosine = float(F.cosine_similarity(gradients["bfloat16"], gradients["float32"], dim=0))
    return [
        result(
            "steps/s of the trunk alone in bfloat16 over those in float32",
            speeds,
            over("bfloat16", "float32"),
            arm_unit="steps/s",
            note=f"{_CONDITIONS} conditions. Cosine of the trunk's gradients of both: {cosine:.4f}. On a processor "
            "without instructions for bfloat16 it is the slower one.",
        )
    ]


def _problem(generator: LoRAGenerator) -> tuple[TrainingBatch, CoreObjective]:
    conditions = F.normalize(
        torch.randn(_CONDITIONS, generator.config.condition_size, generator=torch.Generator().manual_seed(0)), dim=1
    )
    with torch.no_grad():
        q, p = generator.cores(conditions.roll(1, 0))
    moments = torch.eye(generator.config.basis_rank).expand(len(generator.lora.modules), -1, -1)
    names = [str(i) for i in range(_CONDITIONS)]
    targets = dict(zip(names, zip(q, p, strict=True), strict=True))
    batch = [TaskGroup(name, condition) for name, condition in zip(names, conditions, strict=True)]
    return batch, CoreObjective(CoreMetric(generator, moments), targets)


def _gradient(generator: LoRAGenerator, dtype: str, objective: CoreObjective, batch: TrainingBatch) -> Tensor:
    """The gradient of the loss with respect to the trunk's matrices, one float64 vector."""
    generator.trunk_dtype = getattr(torch, dtype)
    loss, _ = objective(generator, batch, 0)
    return torch.cat([g.flatten().double() for g in torch.autograd.grad(loss, generator.trunk_matrices())])


def _step(generator: LoRAGenerator, dtype: str, objective: CoreObjective, batch: TrainingBatch) -> Callable[[], object]:
    config = TrainingConfig(
        steps=1, warmup_steps=0, learning_rate=1e-5, shared_rate=0, trunk_optimiser="muon",
        trunk_dtype="bfloat16" if dtype == "bfloat16" else "float32",
    )  # fmt: skip
    return lambda: train(generator, objective, lambda _: batch, config)
