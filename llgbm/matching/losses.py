"""Distances of a generated adapter from its teacher: in behaviour (deltas) and in weights.

Each loss returns a scalar tensor and its parts as floats, for the log. A shape that does not fit raises; it never gives
a loss of zero. Scale always counts: no loss uses normalised vectors only.

Deltas are (adapters, layers, hidden), means over probes, or (adapters, probes, layers, hidden).
Losses on the base's next-token predictions are in `llgbm.fitting.task_losses`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from llgbm.errors import AdapterMismatchError, ConfigError
from llgbm.lora import LoRAWeights
from llgbm.matching.delta_head import DeltaHead
from llgbm.matching.weight_tokens import TokenLayout, TokenNormalizer, tokenize

Loss = tuple[Tensor, dict[str, float]]
WeightMode = Literal["product", "tokens"]

_MIN_NORM_RATIO = 0.1
"""Lower limit of a student's norm in a cosine, relative to the teacher's norm. The gradient of a cosine is unbounded
near the zero vector, where a fresh generator starts, since its B is zero."""


@dataclass(frozen=True)
class WeightLoss:
    """Distance of generated weights from a teacher's.

    Attributes:
        mode: `product`: ||BA - B'A'||^2 / ||B'A'||^2 over all modules together, scalings included, from r x r Gram
            matrices without a dense product. It does not depend on the factorisation, and ranks may differ. `tokens`:
            mean squared error of normalised tokens, where A and B count separately.
        normalizer: scales of the tokens, fitted on teachers; needed for `tokens`.
        token_size: D of the tokens. It does not change the loss.

    Raises:
        ConfigError: an unknown mode, or `tokens` without a normaliser.
    """

    mode: WeightMode = "product"
    normalizer: TokenNormalizer | None = None
    token_size: int = 128

    def __post_init__(self) -> None:
        if self.mode not in get_args(WeightMode):
            raise ConfigError(f"unknown weight loss {self.mode!r}; known are {', '.join(get_args(WeightMode))}")
        if self.mode == "tokens" and self.normalizer is None:
            raise ConfigError("the weight loss on tokens needs a TokenNormalizer fitted on the teachers")

    def __call__(self, generated: Sequence[LoRAWeights], teachers: Sequence[LoRAWeights]) -> Loss:
        """Mean over adapters. Teachers get no gradient.

        Raises:
            AdapterMismatchError: the lists differ in length or are empty, an adapter and its teacher change
                different modules (for `tokens`: or differ in rank), or a teacher's product is zero.
        """
        if not generated or len(generated) != len(teachers):
            raise AdapterMismatchError(f"{len(generated)} adapters for {len(teachers)} teachers: need one for each")
        teachers = [teacher.detach() for teacher in teachers]
        for student, teacher in zip(generated, teachers, strict=True):
            if student.spec.modules != teacher.spec.modules:
                raise AdapterMismatchError(
                    "an adapter and its teacher change different modules; compare like with like"
                )
        if self.normalizer is None or self.mode == "product":
            errors = [_product_error(s, t) for s, t in zip(generated, teachers, strict=True)]
        else:
            errors = [self._token_error(s, t, self.normalizer) for s, t in zip(generated, teachers, strict=True)]
        loss = torch.stack(errors).mean()
        return loss, {"weight": float(loss.detach())}

    def _token_error(self, student: LoRAWeights, teacher: LoRAWeights, normalizer: TokenNormalizer) -> Tensor:
        layout = TokenLayout(teacher.spec, self.token_size)
        difference = tokenize([student], layout, normalizer) - tokenize([teacher], layout, normalizer)
        return difference.square().sum() / layout.spec.num_parameters


@dataclass(frozen=True)
class DeltaOnlyLoss:
    """Distance of a delta from a teacher's: direction and scale.

    The relative squared error ||d - d'||^2 / ||d'||^2 is computed per adapter and layer, then averaged, so layers of
    small norm count like the others. Probes are summed first, so a probe without any effect of the teacher cannot blow
    it up. The second term is 1 - cosine of each vector: it has a gradient where the error alone would first shrink the
    scale.

    Attributes:
        lambda_scale: weight of the relative squared error; positive, since a cosine alone leaves the scale free.
        lambda_direction: weight of 1 - cosine.

    Raises:
        ConfigError: a weight is out of range.
    """

    lambda_scale: float = 1.0
    lambda_direction: float = 1.0

    def __post_init__(self) -> None:
        if self.lambda_scale <= 0 or self.lambda_direction < 0:
            raise ConfigError(
                f"lambda_scale must be positive and lambda_direction not negative, not {self.lambda_scale} and "
                f"{self.lambda_direction}: a loss on directions alone leaves the scale free"
            )

    def __call__(self, delta: Tensor, teacher: Tensor, *, yardstick: Tensor | None = None) -> Loss:
        """Mean over adapters, layers and probes. The teacher gets no gradient.

        Args:
            yardstick: deltas of usual size, shaped as `teacher`, for a `teacher` that may be near zero: errors are
                relative to at least a hundredth of their squared norm.

        Raises:
            AdapterMismatchError: the shapes differ or are not documented ones, or the teacher's delta is zero and there
                is no yardstick.
        """
        _require_deltas(delta, teacher)
        teacher = teacher.detach()
        over = (-1,) if teacher.dim() == 3 else (1, -1)  # hidden, and probes if there are any
        energy = teacher.square().sum(over)  # (adapters, layers)
        if yardstick is not None:
            _require_deltas(teacher, yardstick)
            energy = torch.maximum(energy, _MIN_NORM_RATIO**2 * yardstick.detach().square().sum(over))
        if not bool((energy > 0).all()):
            raise AdapterMismatchError("a teacher's delta is zero in some layer, so the relative loss is undefined")
        error = ((delta - teacher).square().sum(over) / energy).mean()
        cosine = _cosine(delta, teacher).mean()  # of (adapters, layers) or (adapters, probes, layers) cosines
        loss = self.lambda_scale * error + self.lambda_direction * (1 - cosine)
        return loss, {
            "delta": float(loss.detach()),
            "delta_error": float(error.detach()),
            "delta_cosine": float(cosine.detach()),
        }


@dataclass(frozen=True)
class MultiTaskLoss:
    """lambda_weight * weight loss + lambda_delta * delta loss.

    Raises:
        ConfigError: a weight is negative, or both are zero.
    """

    lambda_weight: float = 1.0
    lambda_delta: float = 1.0
    weight_loss: WeightLoss = WeightLoss()
    delta_loss: DeltaOnlyLoss = DeltaOnlyLoss()

    def __post_init__(self) -> None:
        if min(self.lambda_weight, self.lambda_delta) < 0 or self.lambda_weight + self.lambda_delta == 0:
            raise ConfigError("lambda_weight and lambda_delta must not be negative, and one must be positive")

    def __call__(
        self,
        generated: Sequence[LoRAWeights],
        teachers: Sequence[LoRAWeights],
        delta: Tensor,
        teacher_delta: Tensor,
    ) -> Loss:
        """Both terms; `delta` is that of the generated adapters, `teacher_delta` that of the teachers.

        Raises:
            AdapterMismatchError: as the two losses.
        """
        weight, weight_parts = self.weight_loss(generated, teachers)
        behaviour, delta_parts = self.delta_loss(delta, teacher_delta)
        loss = self.lambda_weight * weight + self.lambda_delta * behaviour
        return loss, {"loss": float(loss.detach()), **weight_parts, **delta_parts}


@dataclass(frozen=True)
class DeltaGuidedLoss:
    """Delta supervision with few passes through the base: a head predicts deltas and is checked against the base.

    Three terms, each a `DeltaOnlyLoss`, and each trains one side only:

    - At every step, the head's prediction for the generated adapter against the teacher trains the **generator**. The
      head gets no gradient: otherwise it would learn to predict the teacher's delta for any adapter.
    - Every `every` steps, the delta computed with the base against the teacher trains the **generator**.
    - At the same steps, consistency, the prediction against the computed delta, trains the **head**. The computed delta
      and the adapter are detached. With teachers' weights, the head also learns their known deltas, without a pass.

    Attributes:
        every: N, steps from one computed delta to the next.
        lambda_predicted: weight of prediction against teacher.
        lambda_computed: weight of computed against teacher.
        lambda_consistency: weight of prediction against computed, and of the head's error on teachers.
        delta_loss: the comparison of two deltas.

    Raises:
        ConfigError: `every` is below 1 or a weight is negative.
    """

    every: int = 10
    lambda_predicted: float = 1.0
    lambda_computed: float = 1.0
    lambda_consistency: float = 1.0
    delta_loss: DeltaOnlyLoss = DeltaOnlyLoss()

    def __post_init__(self) -> None:
        weights = (self.lambda_predicted, self.lambda_computed, self.lambda_consistency)
        if self.every < 1 or min(weights) < 0:
            raise ConfigError(f"every must be at least 1 and no weight negative, not {self.every} and {weights}")

    def due(self, step: int) -> bool:
        """Whether step `step`, counted from 0, computes the delta with the base."""
        return step % self.every == 0

    def __call__(
        self,
        head: DeltaHead,
        generated: Sequence[LoRAWeights],
        teacher_delta: Tensor,
        computed: Tensor | None = None,
        teachers: Sequence[LoRAWeights] | None = None,
    ) -> Loss:
        """All terms of one step.

        Args:
            generated: the generator's adapters, with gradient.
            teacher_delta: (adapters, probes, layers, hidden) or (adapters, layers, hidden).
            computed: deltas of `generated` on the base, shaped as `teacher_delta`, at the steps that need them.
            teachers: weights with the deltas `teacher_delta`; None for teachers without weights, such as a context.

        Raises:
            AdapterMismatchError: a shape or a number of adapters does not fit.
        """
        teacher_mean = _mean_delta(teacher_delta)
        predicted, parts = self.delta_loss(head.predict_frozen(generated), teacher_mean)
        loss = self.lambda_predicted * predicted
        report = {f"predicted_{key}": value for key, value in parts.items()}
        if teachers is not None:
            known, parts = self.delta_loss(head([t.detach() for t in teachers]), teacher_mean)
            loss = loss + self.lambda_consistency * known
            report |= {f"head_{key}": value for key, value in parts.items()}
        if computed is not None:
            behaviour, parts = self.delta_loss(computed, teacher_delta)
            report |= {f"computed_{key}": value for key, value in parts.items()}
            grounded = head([adapter.detach() for adapter in generated])
            # the teacher is the yardstick, since a fresh generator's computed delta is zero
            consistency, parts = self.delta_loss(grounded, _mean_delta(computed), yardstick=teacher_mean)
            report |= {f"consistency_{key}": value for key, value in parts.items()}
            loss = loss + self.lambda_computed * behaviour + self.lambda_consistency * consistency
        return loss, {"loss": float(loss.detach()), **report}


def _product_error(student: LoRAWeights, teacher: LoRAWeights) -> Tensor:
    """||BA - B'A'||^2 / ||B'A'||^2, the squares added over all modules.

    The difference is itself a product, [B, -B'] [A; A'], and the norm of a product follows from the Gram matrices of
    its factors. These are float64: near the teacher large squares cancel, and float32 would leave only noise.
    """
    error = energy = torch.zeros((), dtype=torch.float64)
    rank = student.spec.rank
    for (_, a, b), (_, a_teacher, b_teacher) in zip(student.pairs(), teacher.pairs(), strict=True):
        factor_a = torch.cat([a, a_teacher.to(a)]).double()  # (r + r', in)
        factor_b = torch.cat([student.spec.scaling * b, -teacher.spec.scaling * b_teacher.to(b)], dim=1).double()
        # ||XY||^2 = tr(Y Y^T X^T X), the sum of the elementwise product of two symmetric (r + r', r + r') matrices
        grams = (factor_a @ factor_a.t()) * (factor_b.t() @ factor_b)
        error = error + grams.sum()
        energy = energy + grams[rank:, rank:].detach().sum()  # the teacher's block alone is ||B'A'||^2
    if not float(energy) > 0:
        raise AdapterMismatchError("a teacher's product BA is zero, so the relative error is undefined")
    return (error.clamp_min(0) / energy).float()


def _cosine(delta: Tensor, teacher: Tensor) -> Tensor:
    """Cosine along the last dimension; 0 where the teacher is zero."""
    size: Tensor = torch.linalg.vector_norm(teacher, dim=-1)
    norm = torch.maximum(torch.linalg.vector_norm(delta, dim=-1), _MIN_NORM_RATIO * size)
    return (delta * teacher).sum(-1) / (norm * size).clamp_min(torch.finfo(delta.dtype).tiny)


def _mean_delta(delta: Tensor) -> Tensor:
    """A delta with or without a dimension of probes as (adapters, layers, hidden)."""
    return delta.mean(1) if delta.dim() == 4 else delta


def _require_deltas(delta: Tensor, teacher: Tensor) -> None:
    if delta.shape != teacher.shape:
        raise AdapterMismatchError(
            f"a delta of shape {tuple(delta.shape)} cannot be compared with a teacher's of "
            f"{tuple(teacher.shape)}; measure both at the same layers and probes"
        )
    if delta.dim() not in (3, 4):
        raise AdapterMismatchError(
            f"deltas are (adapters, layers, hidden) or (adapters, probes, layers, hidden), not {tuple(delta.shape)}"
        )
