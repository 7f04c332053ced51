"""Keys and values of the running rows: two tensors per layer, each row with its own length.

Row i of the batch is slot i, and its keys start at column 0. Columns beyond its length hold old values, which are
finite and masked. Joining rows take slots at the end; when a row leaves, the last row moves into its slot. Memory grows
in blocks and shrinks when most of it is unused.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_ROW_BLOCK = 4
_TOKEN_BLOCK = 128
_SHRINK_FACTOR = 4
"""Shrink when at most 1/N of the cache is used; the copy is then small compared with the freed memory."""


class RowCache:
    """Keys and values for rows of different lengths.

    Args:
        num_layers: layers of the decoder.
        num_kv_heads: key and value heads of each layer.
        head_dim: size of one head.
        dtype: of keys and values.
        device: of keys and values; None for the CPU.
    """

    def __init__(
        self, num_layers: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device | None = None
    ) -> None:
        self._empty = torch.zeros(0, num_kv_heads, 0, head_dim, dtype=dtype, device=device)
        self._keys = [self._empty] * num_layers
        self._values = [self._empty] * num_layers
        self._lengths: list[int] = []
        self._new_places = torch.zeros(0, dtype=torch.long)

    @property
    def lengths(self) -> Sequence[int]:
        """Tokens of each row, in the order of the batch."""
        return self._lengths

    def join(self, keys: Sequence[Tensor], values: Sequence[Tensor], lengths: Sequence[int]) -> None:
        """Copy the prompts of new rows into slots at the end. A copy that fails leaves the lengths unchanged.

        Args:
            keys, values: for each layer (new rows, kv_heads, longest of them, head_dim), padded at the right with
                finite numbers.
            lengths: tokens of each new row.
        """
        first = len(self._lengths)
        self._reserve(first + len(lengths), max(lengths))
        for own, new in ((self._keys, keys), (self._values, values)):
            for tensor, states in zip(own, new, strict=True):
                tensor[first : first + len(lengths), :, : states.shape[2]] = states
        self._lengths += lengths

    def start_step(self) -> Tensor:
        """Reserve room for one more token in every row; the next forward pass must run one token per row.

        Returns:
            Additive mask (rows, 1, 1, longest) for that pass, in the dtype of the cache.
        """
        rows, longest = len(self._lengths), max(self._lengths) + 1
        self._reserve(rows, longest)
        _, heads, room, _ = self._keys[0].shape
        device = self._empty.device
        columns = torch.tensor(self._lengths, device=device)  # (rows,): each row's new token goes behind its last one
        # In the view (slots * heads * room, head_dim) that `update` writes to, head h of slot s starts at
        # (s * heads + h) * room. One index_copy_ per tensor then stores all rows, at any lengths.
        starts = torch.arange(rows * heads, device=device).view(rows, heads) * room
        self._new_places = (starts + columns[:, None]).flatten()
        # column c is hidden from a row whose new token is at column n < c
        hidden = torch.arange(longest, device=device)[None, :] > columns[:, None]
        mask = self._empty.new_zeros(hidden.shape).masked_fill_(hidden, float("-inf"))
        return mask[:, None, None, :]

    def finish_step(self) -> None:
        """Count the tokens of the pass. A pass that fails before this call leaves the lengths unchanged."""
        self._lengths = [length + 1 for length in self._lengths]

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        """Store the states (rows, kv_heads, 1, head_dim) of a layer's new tokens; returns all to attend to."""
        keys, values = self._keys[layer_idx], self._values[layer_idx]
        size = key_states.shape[-1]
        keys.view(-1, size).index_copy_(0, self._new_places, key_states.reshape(-1, size))
        values.view(-1, size).index_copy_(0, self._new_places, value_states.reshape(-1, size))
        rows, longest = len(self._lengths), max(self._lengths) + 1
        return keys[:rows, :, :longest], values[:rows, :, :longest]

    def leave(self, slot: int, *, wipe: bool = False) -> None:
        """Free a slot; the last row moves into it.

        Args:
            slot: index of the row in the batch.
            wipe: clear its values, which may not be finite: a mask does not hide a NaN.
        """
        last = len(self._lengths) - 1
        for tensors in (self._keys, self._values):
            for tensor in tensors:
                if wipe:
                    tensor[slot].zero_()
                if slot != last:
                    tensor[slot, :, : self._lengths[last]] = tensor[last, :, : self._lengths[last]]
        self._lengths[slot] = self._lengths[last]
        self._lengths.pop()
        self._shrink()

    def _reserve(self, rows: int, tokens: int) -> None:
        has_rows, has_tokens = self._size()
        # after a resize that failed halfway layers differ, but a step writes to the same places in every layer
        uneven = len({tensor.shape for tensor in (*self._keys, *self._values)}) > 1
        if rows > has_rows or tokens > has_tokens or uneven:
            self._resize(max(_round_up(rows, _ROW_BLOCK), has_rows), max(_round_up(tokens, _TOKEN_BLOCK), has_tokens))

    def _shrink(self) -> None:
        rows = _round_up(len(self._lengths), _ROW_BLOCK)
        tokens = _round_up(max(self._lengths, default=0), _TOKEN_BLOCK)
        has_rows, has_tokens = self._size()
        if rows * tokens * _SHRINK_FACTOR <= has_rows * has_tokens:
            self._resize(rows, tokens)

    def _size(self) -> tuple[int, int]:
        """Rows and tokens with room in every layer."""
        tensors = (*self._keys, *self._values)
        return min(t.shape[0] for t in tensors), min(t.shape[2] for t in tensors)

    def _resize(self, rows: int, tokens: int) -> None:
        _, heads, _, size = self._empty.shape
        for tensors in (self._keys, self._values):
            for layer, old in enumerate(tensors):
                # zeros, not uninitialised memory: masked columns must be finite
                new = old.new_zeros(rows, heads, tokens, size)
                kept_rows, kept_tokens = min(rows, old.shape[0]), min(tokens, old.shape[2])
                new[:kept_rows, :, :kept_tokens] = old[:kept_rows, :, :kept_tokens]
                tensors[layer] = new


def _round_up(number: int, block: int) -> int:
    return -(-number // block) * block
