"""Losses on the base's next-token predictions: SFT on labels, KL to a teacher's distribution.

Both need logits at label positions only. The head multiplies a flat (labels, hidden) matrix, since on (rows, positions,
hidden) torch takes a batched kernel that is many times slower on a CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor
from torch.nn import functional as F

from llgbm.base import Base
from llgbm.errors import AdapterMismatchError
from llgbm.fitting.recompute import recomputed_layers
from llgbm.functional import FunctionalLoRA
from llgbm.lora import LoRAWeights
from llgbm.packed.batch import PackedBatch, packed_hidden_states


def label_logits(
    base: Base,
    functional: FunctionalLoRA,
    batch: PackedBatch,
    weights: Sequence[LoRAWeights | None],
    *,
    recompute: bool = False,
) -> Tensor:
    """Logits (labels, vocabulary) float32 at the label positions of a packed batch, one adapter for each group.

    Args:
        recompute: keep only the layers' inputs for the backward pass and run each layer again there.
    """
    prepared = functional.prepare(weights, lengths=batch.lengths)
    packed = batch.padded is None
    saving = recomputed_layers(base.model, functional, prepared, packed=packed) if recompute else nullcontext()
    with functional.applied(prepared), saving:
        hidden = packed_hidden_states(base.model, batch)
    logits: Tensor = base.model.get_submodule("lm_head")(hidden[batch.label_index])
    return logits.float()


def sft_loss(logits: Tensor, batch: PackedBatch, *, label_smoothing: float = 0.0) -> Tensor:
    """Cross entropy in nats, a mean over labels in each row and then over rows, so that long answers do not dominate.

    Args:
        logits: (labels, vocabulary).
        label_smoothing: share of the target that is spread evenly over the vocabulary, as in torch.

    Raises:
        AdapterMismatchError: the logits are of another batch, or a row has no label.
    """
    return mean_by_row(sft_by_label(logits, batch, label_smoothing=label_smoothing), batch)


def sft_by_label(logits: Tensor, batch: PackedBatch, *, label_smoothing: float = 0.0) -> Tensor:
    """Cross entropy of each label in nats (labels,); arguments and errors as in `sft_loss`."""
    _require_labels(logits, batch)
    return F.cross_entropy(logits, batch.labels, reduction="none", label_smoothing=label_smoothing)


def kl_by_label(logits: Tensor, teacher_values: Tensor, teacher_indices: Tensor) -> Tensor:
    """KL(teacher || student) in nats (labels,), over the teacher's top k tokens and one class for the rest.

    Args:
        logits: (labels, vocabulary) of the student.
        teacher_values: (labels, k) log-probabilities of the teacher's most likely tokens.
        teacher_indices: (labels, k) int64, these tokens.
    """
    student = logits.log_softmax(-1).gather(1, teacher_indices)  # (labels, k)
    teacher_p = teacher_values.exp()
    # 1 - sum of float32 probabilities may be 0 or below, and its logarithm is needed
    teacher_rest = (1 - teacher_p.sum(-1)).clamp_min(1e-6)
    student_rest = (1 - student.exp().sum(-1)).clamp_min(1e-6)
    losses = (teacher_p * (teacher_values - student)).sum(-1)
    return losses + teacher_rest * (teacher_rest.log() - student_rest.log())


def mean_by_row(losses: Tensor, batch: PackedBatch) -> Tensor:
    """Mean over the labels (labels,) of each row, then over rows: scalar."""
    zeros = losses.new_zeros(len(batch.last_index))
    sums = zeros.index_add(0, batch.label_row, losses)
    counts = zeros.index_add(0, batch.label_row, torch.ones_like(losses))
    return (sums / counts).mean()


def _require_labels(logits: Tensor, batch: PackedBatch) -> None:
    if logits.shape[0] != len(batch.labels):
        raise AdapterMismatchError(f"{logits.shape[0]} rows of logits for a batch with {len(batch.labels)} labels")
    without = len(batch.last_index) - len(batch.label_row.unique())
    if without:
        raise AdapterMismatchError(f"{without} rows have no label; a loss on labels needs an answer in every row")
