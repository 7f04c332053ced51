"""Packs rows of many lengths into one row of tokens without padding, and without repeating what rows share.

Rows that start with the same tokens (a chat template's head, often a description) and carry the same adapter form a
group: the shared prefix is stored once and each row's rest follows. A block mask lets every rest see its own prefix and
itself, and positions count on from the prefix, so that by causality each token gets just what it gets in its row alone.
A `TaskGroup` is such a group with the condition from which its adapter is made; a training step works on several.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from llgbm.errors import AdapterMismatchError
from llgbm.lora import LoRAWeights


@dataclass(frozen=True, eq=False)
class PackedBatch:
    """One packed row.

    Attributes:
        input_ids: (1, T) int64.
        position_ids: (1, T) int64, each token's place in its own row.
        masks: for each group (length, length) float32, 0 where a token may look and -inf elsewhere.
        lengths: tokens of each group, in order: the spans for `FunctionalLoRA.applied(..., lengths=...)`.
        label_index: (L,) int64, flat positions whose next token is a label, row by row.
        labels: (L,) int64, those next tokens.
        label_row: (L,) int64, which row (in the order given) each label belongs to.
        last_index: (rows,) int64, flat position of each row's last token.
    """

    input_ids: Tensor
    position_ids: Tensor
    masks: list[Tensor]
    lengths: list[int]
    label_index: Tensor
    labels: Tensor
    label_row: Tensor
    last_index: Tensor

    @property
    def num_tokens(self) -> int:
        """T, what the pass through the base costs."""
        return int(self.input_ids.shape[1])


@dataclass(frozen=True)
class Row:
    """Token ids of one row: the prompt, then what is to be predicted (may be empty)."""

    prompt: Sequence[int]
    answer: Sequence[int] = ()


def pack(groups: Sequence[Sequence[Row]]) -> PackedBatch:
    """Pack groups of rows; all rows of a group carry the same adapter.

    Raises:
        AdapterMismatchError: there is no group, or a group or a prompt is empty.
    """
    if not groups:
        raise AdapterMismatchError("there is nothing to pack: no group was given")
    ids: list[int] = []
    positions: list[int] = []
    masks: list[Tensor] = []
    lengths: list[int] = []
    label_index: list[int] = []
    labels: list[int] = []
    label_row: list[int] = []
    last_index: list[int] = []
    for rows in groups:
        if not rows or any(not row.prompt for row in rows):
            raise AdapterMismatchError("every group needs a row, and every row a prompt of at least one token")
        start = len(ids)
        shared = _shared_prefix([row.prompt for row in rows])
        ids += rows[0].prompt[:shared]
        positions += range(shared)
        owner = [-1] * shared
        for row in rows:
            number = len(last_index)
            rest = [*row.prompt[shared:], *row.answer]
            offset = len(ids) - shared  # flat index of a token = offset + its position, from `shared` on
            ids += rest
            positions += range(shared, shared + len(rest))
            owner += [number] * len(rest)
            for place, token in enumerate(row.answer, start=len(row.prompt)):
                label_index.append(offset + place - 1)
                labels.append(token)
                label_row.append(number)
            last_index.append(len(ids) - 1)
        lengths.append(len(ids) - start)
        masks.append(_mask(torch.tensor(owner)))
    return PackedBatch(
        input_ids=torch.tensor([ids]),
        position_ids=torch.tensor([positions]),
        masks=masks,
        lengths=lengths,
        label_index=torch.tensor(label_index, dtype=torch.long),
        labels=torch.tensor(labels, dtype=torch.long),
        label_row=torch.tensor(label_row, dtype=torch.long),
        last_index=torch.tensor(last_index, dtype=torch.long),
    )


def packed_hidden_states(model: nn.Module, batch: PackedBatch) -> Tensor:
    """Last hidden states (T, hidden) of a transformers causal LM on a packed batch, after the final norm.

    Attention runs group by group, so that its cost grows with the groups and not with the square of the whole row.
    """
    decoder = model.get_submodule("model")
    with grouped_attention(model):
        out = decoder(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            attention_mask={"full_attention": None},
            use_cache=False,
            packed_masks=batch.masks,
        )
    hidden: Tensor = out.last_hidden_state[0]
    return hidden


@contextmanager
def grouped_attention(model: nn.Module) -> Iterator[None]:
    """Inside, `model` attends group by group, as a packed batch needs it."""
    config: Any = model.config
    before = config._attn_implementation
    config._attn_implementation = _ATTENTION
    try:
        yield
    finally:
        config._attn_implementation = before


def _grouped_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: None, **kwargs: Any
) -> tuple[Tensor, None]:
    """As transformers calls it: query (1, heads, T, d), key and value (1, kv_heads, T, d) -> (1, T, heads, d)."""
    masks = kwargs["packed_masks"]
    lengths = [len(mask) for mask in masks]
    parts = [
        F.scaled_dot_product_attention(q, k, v, mask, scale=kwargs["scaling"], enable_gqa=True)
        for q, k, v, mask in zip(
            query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2), masks, strict=True
        )
    ]
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None


_ATTENTION = "llgbm_grouped"
ALL_ATTENTION_FUNCTIONS.register(_ATTENTION, _grouped_attention)


def _shared_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """Length of the common prefix, at least one token short of every prompt: each row makes its own predictions."""
    if len(prompts) == 1:
        return 0
    limit = min(len(p) for p in prompts) - 1
    first = prompts[0]
    for place in range(limit):
        if any(p[place] != first[place] for p in prompts):
            return place
    return limit


def _mask(owner: Tensor) -> Tensor:
    """(n, n) additive mask of one group; a token's owner is its row, or -1 for the shared prefix, which comes first."""
    visible = (owner[:, None] == owner[None, :]) | (owner[None, :] < 0)
    allowed = visible.tril()
    return torch.zeros(allowed.shape).masked_fill_(~allowed, float("-inf"))


@dataclass(frozen=True, eq=False)
class TaskGroup:
    """Rows of one task that share one adapter.

    Attributes:
        task_id: for the log.
        condition: (condition_size,) float32; None stands for the generator's shared adapter.
        rows: tokenised prompts and answers; empty for losses that need none.
        context_rows: the same rows as a teacher reads them, mostly with the description in the context, to distil from.
        teacher: the task's own adapter, for weight losses and to distil from.
        delta: (probes, layers, hidden) float32, the delta of the task's own adapter, for delta losses.
    """

    task_id: str
    condition: Tensor | None
    rows: Sequence[Row] = ()
    context_rows: Sequence[Row] = ()
    teacher: LoRAWeights | None = None
    delta: Tensor | None = None


TrainingBatch = Sequence[TaskGroup]
"""The groups of one step."""
