"""The task objective of `train`: makes the batch's adapters once and computes losses of the base with them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from llgbm.base import Base, require_gradients
from llgbm.delta import DeltaMeter, keep_states
from llgbm.errors import ConfigError
from llgbm.fitting.context_teacher import ContextTeacher, Teacher, stacked_states
from llgbm.fitting.task_losses import kl_by_label, label_logits, mean_by_row, sft_by_label
from llgbm.functional import FunctionalLoRA
from llgbm.generator import Cores, LoRAGenerator
from llgbm.lora import LoRAWeights
from llgbm.matching.losses import DeltaOnlyLoss
from llgbm.packed.batch import Row, TaskGroup, TrainingBatch, pack


class TaskObjective:
    """Task loss (SFT): cross entropy of the answers, every group with its own generated adapter.

    Args:
        distillation: share, 0 to 1, of the KL to a teacher in the loss of rows with `TaskGroup.context_rows`. The rest
            of their loss is the cross entropy, which is the whole loss of other rows.
        state_matching: weight of the distance between the hidden states of student and teacher at the answers of these
            rows, added to their loss (behavioural matching in the fit).
        state_layers: decoder layers of these states, ascending.
        context_teacher: the teacher, see `llgbm.fitting.context_teacher`.
        matching: weight of the delta loss, added to the task loss, for groups with a teacher's delta
            (`TaskGroup.delta`).
        meter: measures the generated adapters as the teachers were measured; needed for `matching`.
        recompute: save memory by running each layer again in the backward pass, see `llgbm.fitting.recompute`.

    Raises:
        ConfigError: `matching` without a meter, `state_matching` without layers, or a base in int8, which passes no
            gradients.
    """

    def __init__(
        self,
        base: Base,
        *,
        label_smoothing: float = 0.05,
        distillation: float = 0.0,
        state_matching: float = 0.0,
        state_layers: Sequence[int] = (),
        context_teacher: Teacher | LoRAWeights = "shared",
        matching: float = 0.0,
        meter: DeltaMeter | None = None,
        recompute: bool = False,
    ) -> None:
        require_gradients(base)
        self._base, self._functional = base, FunctionalLoRA(base.model)
        self._label_smoothing, self._distillation = label_smoothing, distillation
        self._recompute = recompute
        if state_matching and not state_layers:
            raise ConfigError("state_matching needs state_layers, the layers of the matched states")
        self._state_matching, self._state_layers = state_matching, state_layers if state_matching else ()
        self._context_teacher = ContextTeacher(base, self._functional, context_teacher, layers=self._state_layers)
        if matching and meter is None:
            raise ConfigError("matching needs a DeltaMeter with the measurement of the teachers' deltas")
        self._matching, self._meter = matching, meter if matching else None

    def modules(self) -> tuple[()]:
        """None: only the generator is trained."""
        return ()

    def weight(self, batch: TrainingBatch) -> float:
        """Number of rows in the batch; the loss is a mean over them."""
        return float(sum(len(group.rows) for group in batch))

    def __call__(self, generator: LoRAGenerator, batch: TrainingBatch, step: int) -> tuple[Tensor, dict[str, float]]:
        """The loss, a mean over rows in nats, with its parts and the base's numbers of rows and tokens."""
        batch = in_order(batch)
        weights, rows = generated_groups(generator, batch, self._base.activation_dtype)
        packed = pack(rows).on(self._base.device)
        labels = packed.flat_places(packed.label_index)
        with keep_states(self._base.model, self._state_layers, labels) as kept:
            logits = label_logits(self._base, self._functional, packed, weights, recompute=self._recompute)
        # logits (labels, vocabulary), losses (labels,)
        losses = sft_by_label(logits, packed, label_smoothing=self._label_smoothing)
        parts: dict[str, float] = {
            "sft": float(mean_by_row(losses.detach(), packed)),
            "rows": len(packed.last_index),
            "tokens": packed.num_tokens,
            "kl": 0.0,  # always present: processes that share a batch sum parts by their order
            "states": 0.0,
            "delta": 0.0,
        }
        lesson = self._context_teacher(generator, batch) if self._distillation or self._state_matching else None
        if lesson is not None:
            labels = lesson.labels
            divergence = kl_by_label(logits[labels], lesson.values, lesson.indices)
            parts["kl"] = float(divergence.detach().mean())
            taught = losses[labels].lerp(divergence, self._distillation)
            if self._state_matching:
                states = stacked_states(kept, self._state_layers, logits)[:, labels]
                distances = lesson.state_distances(states)
                parts["states"] = float(distances.detach().mean())
                taught = taught + self._state_matching * distances
            losses = losses.index_copy(0, labels, taught)
        loss = mean_by_row(losses, packed)
        if self._meter is not None:
            distance = _distance(self._meter, batch, weights)
            parts["delta"] = float(distance.detach())
            loss = loss + self._matching * distance
        return loss, parts


def _distance(meter: DeltaMeter, batch: TrainingBatch, weights: Sequence[LoRAWeights]) -> Tensor:
    """Delta loss (scalar), a mean over all rows; groups without a teacher's delta count as 0."""
    wanted = [(place, group.delta) for place, group in enumerate(batch) if group.delta is not None]
    if not wanted:
        return torch.zeros(())
    made = meter.deltas([weights[place] for place, _ in wanted])
    losses = [
        DeltaOnlyLoss()(d[None], teacher[None].to(d.device))[0] for d, (_, teacher) in zip(made, wanted, strict=True)
    ]
    rows = made.new_tensor([float(len(batch[place].rows)) for place, _ in wanted])
    return torch.stack(losses) @ rows / sum(len(group.rows) for group in batch)


def generated_groups(
    generator: LoRAGenerator, batch: TrainingBatch, dtype: torch.dtype = torch.float32
) -> tuple[list[LoRAWeights], list[list[Row]]]:
    """Adapters and rows of a batch, group by group; groups without a condition get the shared adapter and come last.

    Args:
        dtype: of the adapters; that of the base's activations saves their conversion.
    """
    ordered = in_order(batch)
    if not ordered:
        return [], []
    conditions = [group.condition for group in ordered if group.condition is not None]
    plain = len(ordered) - len(conditions)
    cores = [generator.cores(torch.stack(conditions))] if conditions else []
    if plain:
        cores.append(generator.cores(None))
    # one product makes all adapters; the last of them serves all groups without a condition
    q, p = (torch.cat(parts) for parts in ([c.q for c in cores], [c.p for c in cores]))
    words = [c.words for c in cores if c.words is not None]
    weights = generator.materialise(Cores(q, p, torch.cat(words) if words else None), dtype)
    return weights + weights[-1:] * (plain - 1), [list(group.rows) for group in ordered]


def in_order(batch: TrainingBatch) -> list[TaskGroup]:
    """The groups in the order of `generated_groups`: those without a condition come last."""
    return sorted(batch, key=lambda group: group.condition is None)


__all__ = ["TaskGroup", "TaskObjective", "generated_groups"]
