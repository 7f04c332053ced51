"""Distance of two adapters with common bases in the outputs of the base's modules, from their cores alone.

An adapter of a `LoRAGenerator` adds scaling * B0 P Q A0 x to a module's output. Let S = E[x x^T] be the second moment
of the inputs, and C_a C_a^T = A0 S A0^T and C_b C_b^T = B0^T B0 Cholesky factorisations, all (R, R). Then the mean
squared distance of two adapters' additions is exactly scaling^2 * ||C_b^T (P Q - P' Q') C_a||^2: the delta of each
module, without a pass through the base.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from llgbm.base import Base
from llgbm.errors import AdapterMismatchError, ConfigError
from llgbm.functional import FunctionalLoRA
from llgbm.generator import LoRAGenerator
from llgbm.lora import LoRAWeights
from llgbm.packing import PackedBatch, TrainingBatch, packed_hidden_states

_JITTER = 1e-6
"""Added to a matrix's diagonal before its Cholesky factorisation, relative to the diagonal's mean."""


class CoreMetric:
    """Maps cores to matrices whose squared distance is that of the modules' outputs, without the factor scaling^2.

    Args:
        generator: owner of the bases.
        moments: A0 E[x x^T] A0^T of each module of the generator's LoRASpec, (modules, R, R) float32.

    Raises:
        AdapterMismatchError: the moments have another shape.
    """

    def __init__(self, generator: LoRAGenerator, moments: Tensor) -> None:
        count, basis = len(generator.lora.modules), generator.config.basis_rank
        if moments.shape != (count, basis, basis):
            raise AdapterMismatchError(
                f"the moments have shape {tuple(moments.shape)}, this generator needs {(count, basis, basis)}"
            )
        b0 = generator.output_bases()  # B0^T (R, out) each, so b b^T is B0^T B0
        self._inputs = _cholesky(moments)
        self._outputs = _cholesky(torch.stack([b.detach() @ b.detach().T for b in b0])).transpose(1, 2)

    def __call__(self, q: Tensor, p: Tensor) -> Tensor:
        """(n, modules, R, R) of cores Q (n, modules, r, R) and P (n, modules, R, r), with gradients to both."""
        return (self._outputs @ p) @ (q @ self._inputs)


@torch.no_grad()
def input_moments(
    base: Base,
    functional: FunctionalLoRA,
    generator: LoRAGenerator,
    batches: Sequence[tuple[PackedBatch, LoRAWeights | None]],
) -> Tensor:
    """A0 E[x x^T] A0^T of every module, (modules, R, R) float32, over its inputs in these batches.

    Args:
        batches: packed rows of one group each, with the adapter to apply. The first token is left out: its activations
            are hundreds of times larger than all others.

    Raises:
        AdapterMismatchError: there is no batch.
    """
    if not batches:
        raise AdapterMismatchError("the moments need inputs, and there are no rows")
    a0 = generator.input_bases()
    sums = [torch.zeros(len(a), len(a)) for a in a0]
    tokens = 0

    def add(place: int, x: Tensor) -> None:
        z = x.reshape(-1, x.shape[-1])[1:].float() @ a0[place].T  # (tokens - 1, R): E[x x^T] (in, in) is never made
        sums[place] += z.T @ z

    handles = [
        base.model.get_submodule(module.name).register_forward_pre_hook(
            lambda _, args, place=place: add(place, args[0])
        )
        for place, module in enumerate(generator.lora.modules)
    ]
    try:
        for batch, weights in batches:
            with functional.applied([weights], lengths=batch.lengths):
                packed_hidden_states(base.model, batch)
            tokens += int(sum(batch.lengths)) - 1
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack(sums) / tokens


class CoreObjective:
    """Objective of `llgbm.training.train`: distance of the generated cores from those of a target, module by module.

    In each module the distance is relative to the mean squared distance of all targets from their mean. So the mean of
    all targets scores 1, and hitting all targets scores 0. The loss is the mean over modules and groups.

    Args:
        metric: of the generator's bases, which must stay fixed.
        targets: cores by task id, Q (modules, r, R) and P (modules, R, r) float32, the gate in P.

    Attributes:
        targets: (tasks, modules, R, R), mapped by the metric and scaled, in the given order.

    Raises:
        ConfigError: there are fewer than two targets.
    """

    def __init__(self, metric: CoreMetric, targets: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        if len(targets) < 2:
            raise ConfigError("at least two tasks with different cores are needed")
        self._metric = metric
        self._places = {task: place for place, task in enumerate(targets)}
        with torch.no_grad():
            mapped = torch.cat([metric(q[None], p[None]) for q, p in targets.values()])
            spread = (mapped - mapped.mean(0)).square().sum((-1, -2)).mean(0).clamp_min(1e-12)  # (modules,)
            self._scale = spread.rsqrt()[:, None, None]
            self.targets = mapped * self._scale

    def __call__(self, generator: LoRAGenerator, batch: TrainingBatch, step: int) -> tuple[Tensor, dict[str, float]]:
        """A scalar loss with gradients to the generator; all groups must have a condition and a target."""
        found = [(group.condition, self._places[group.task_id]) for group in batch if group.condition is not None]
        conditions, places = torch.stack([c for c, _ in found]), [place for _, place in found]
        return self.distances(generator, conditions, places).mean(), {}

    def outputs(self, generator: LoRAGenerator, conditions: Tensor) -> Tensor:
        """(n, modules, R, R) of the adapters of `conditions` (n, condition_size), comparable to `targets`."""
        return self._metric(*generator.cores(conditions)) * self._scale

    def distances(self, generator: LoRAGenerator, conditions: Tensor, places: Sequence[int]) -> Tensor:
        """Distances (n,) of the adapters of `conditions` (n, condition_size) from the targets at `places`."""
        return (self.outputs(generator, conditions) - self.targets[list(places)]).square().sum((-1, -2)).mean(-1)

    def place(self, task_id: str) -> int:
        """Index of a task's target."""
        return self._places[task_id]

    def modules(self) -> tuple[()]:
        """None: only the generator is trained."""
        return ()

    def weight(self, batch: TrainingBatch) -> float:
        """Every group counts the same."""
        return float(len(batch))


def _cholesky(matrices: Tensor) -> Tensor:
    mean = matrices.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(1e-12)
    eye = torch.eye(matrices.shape[-1], dtype=matrices.dtype)
    factors: Tensor = torch.linalg.cholesky(matrices + _JITTER * mean[:, None, None] * eye)
    return factors
