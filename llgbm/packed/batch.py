"""Packs rows of different lengths into few tokens, without repeated prefixes; on a CPU also without padding.

Rows with the same adapter form a group. Their common prefix (a chat template's head, often a description) is stored
once, and the rest of each row follows. A block mask lets each rest attend to the prefix and to itself, and its
positions continue from the prefix. So, by causality, every token has the state that it has in its row alone.

There are two layouts of the same tokens. On a CPU the groups stand one after the other in one row: no arithmetic is
spent on padding. On a GPU each group is a row, padded to the longest one: adapters and attention of all groups are then
single batched products. Indices always count packed tokens, so losses are the same code for both.

A `TaskGroup` is a group with the condition of its adapter; a training step has several.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor, nn

from llgbm.errors import AdapterMismatchError
from llgbm.lora import LoRAWeights
from llgbm.packed.layers import packed_layers


@dataclass(frozen=True, eq=False)
class PaddedRows:
    """The groups of a packed batch as G rows, padded at the end to the longest group with L tokens.

    Attributes:
        input_ids: (G, L) int64, 0 in the padding.
        position_ids: (G, L) int64.
        mask: (G, 1, L, L) bool, true where a token may attend; a token of the padding attends to itself.
        place: (T,) int64, the index of each packed token among the G L flat places.
    """

    input_ids: Tensor
    position_ids: Tensor
    mask: Tensor
    place: Tensor


@dataclass(frozen=True, eq=False)
class PackedBatch:
    """Groups of rows for one forward pass.

    Attributes:
        input_ids: (1, T) int64.
        position_ids: (1, T) int64, each token's position in its own row.
        masks: for each group (length, length) float32, 0 where a token may attend and -inf elsewhere.
        lengths: tokens of each group, in order: the spans for `FunctionalLoRA.applied(..., lengths=...)`.
        label_index: (L,) int64, flat positions whose next token is a label, row by row.
        labels: (L,) int64, those next tokens.
        label_row: (L,) int64, the row (in the order given) of each label.
        last_index: (rows,) int64, flat position of each row's last token.
        padded: the layout for a GPU; None computes on the packed row.
    """

    input_ids: Tensor
    position_ids: Tensor
    masks: list[Tensor]
    lengths: list[int]
    label_index: Tensor
    labels: Tensor
    label_row: Tensor
    last_index: Tensor
    padded: PaddedRows | None = None

    @property
    def num_tokens(self) -> int:
        """T, the number of tokens without padding."""
        return int(self.input_ids.shape[1])

    def flat_places(self, index: Tensor) -> Tensor:
        """The places of packed tokens `index` (n,) in the model's activations, flattened to (rows * tokens, size)."""
        return index if self.padded is None else self.padded.place[index]

    def on(self, device: torch.device) -> PackedBatch:
        """The batch on `device`, in the layout for it: padded on a GPU, packed on a CPU."""
        if device.type == "cpu":
            return self
        # the packed row and its masks stay, since nothing reads them there
        moved = {name: getattr(self, name).to(device) for name in ("label_index", "labels", "label_row", "last_index")}
        rows = self.padded_rows()
        padded = PaddedRows(**{field.name: getattr(rows, field.name).to(device) for field in fields(rows)})
        return replace(self, **moved, padded=padded)

    def padded_rows(self) -> PaddedRows:
        """The same tokens in the layout for a GPU."""
        count, longest = len(self.lengths), max(self.lengths)
        columns = torch.cat([torch.arange(length) for length in self.lengths])  # (T,), places in the own group
        groups = torch.arange(count).repeat_interleave(torch.tensor(self.lengths))
        place = groups * longest + columns
        ids, positions = torch.zeros(2, count * longest, dtype=torch.int64)
        ids[place], positions[place] = self.input_ids[0], self.position_ids[0]
        # the diagonal keeps the softmax of a token of the padding from 0 / 0
        mask = torch.eye(longest, dtype=torch.bool).repeat(count, 1, 1)
        for rows, of_group in zip(mask, self.masks, strict=True):
            rows[: len(of_group), : len(of_group)] = of_group == 0
        shape = (count, longest)
        return PaddedRows(ids.view(shape), positions.view(shape), mask[:, None], place)


@dataclass(frozen=True)
class Row:
    """Token ids of one row: the prompt, then the tokens to predict (may be empty)."""

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
        # A group of rows p1 p2 a | p1 p2 b c, prefix p1 p2, becomes
        #   ids        p1 p2 a b c
        #   positions   0  1 2 2 3
        #   owner      -1 -1 0 1 1
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
                label_index.append(offset + place - 1)  # the logits of a position predict the next token
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

    In the packed row attention runs group by group: its cost is the sum of the groups' squares, not the square of the
    whole row. Padded, it is one call.
    """
    decoder = model.get_submodule("model")
    rows = batch.padded
    if rows is not None:
        padded: Tensor = decoder(
            input_ids=rows.input_ids,
            position_ids=rows.position_ids,
            attention_mask={"full_attention": rows.mask},
            use_cache=False,
        ).last_hidden_state
        return padded.flatten(0, 1)[rows.place]
    with packed_layers(model):
        hidden: Tensor = decoder(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            attention_mask={"full_attention": None},  # keeps transformers from making a (T, T) mask of its own
            use_cache=False,
            packed_masks=batch.masks,
        ).last_hidden_state
    return hidden.squeeze(0)


def _shared_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """Length of the common prefix, at least one token shorter than every prompt, so that each row predicts its own."""
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
    # Token i may attend to token j of the same row or of the prefix, if j <= i. For owners -1 -1 0 1 1:
    #   x . . . .
    #   x x . . .
    #   x x x . .
    #   x x . x .
    #   x x . x x
    # Float, not bool: attention would convert a bool mask again in every layer.
    visible = (owner[:, None] == owner[None, :]) | (owner[None, :] < 0)
    allowed = visible.tril()
    return torch.zeros(allowed.shape).masked_fill_(~allowed, float("-inf"))


@dataclass(frozen=True, eq=False)
class TaskGroup:
    """Rows of one task that share one adapter.

    Attributes:
        task_id: for the log.
        condition: (condition_size,) float32; None for the generator's shared adapter.
        rows: tokenised prompts and answers; empty for losses without rows.
        context_rows: the same rows as a teacher reads them, mostly with the description in context, for distillation.
        teacher: the task's own adapter, for weight losses and distillation.
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
