"""Keys and values of the running rows: one tensor per layer, each row with its own length.

Row i of the batch is slot i, and its keys start at column 0. Columns beyond its length hold old values, which are
finite and masked. Joining rows take slots at the end; when a row leaves, the last row moves into its slot. Room grows
in blocks and shrinks when most of it is unused. On the CPU it takes memory only where something was written, so short
rows stay small beside a long one.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Tensor

from llgbm.decoding.mapped import grown, mapped_zeros, round_up

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
        # (rows, kv_heads of the keys and as many of the values, tokens, head_dim)
        self._empty = torch.zeros(0, 2 * num_kv_heads, 0, head_dim, dtype=dtype, device=device)
        self._states = [self._empty] * num_layers
        self._room = (0, 0)
        self._lengths: list[int] = []
        self._new_places = torch.zeros(0, dtype=torch.long)
        self._longest = 0

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
        for own, *new in zip(self._states, keys, values, strict=True):
            for part, states in zip(own[first : first + len(lengths)].chunk(2, dim=1), new, strict=True):
                part[:, :, : states.shape[2]] = states
        self._lengths += lengths

    def start_step(self) -> Tensor | None:
        """Reserve room for one more token in every row; the next forward pass must run one token per row.

        Returns:
            Additive mask (rows, 1, 1, longest) for that pass, in the dtype of the cache; None if all rows have the same
            length, so that there is nothing to hide.
        """
        rows, longest = len(self._lengths), max(self._lengths) + 1
        self._reserve(rows, longest)
        self._longest = longest
        _, heads, room, _ = self._states[0].shape
        device = self._empty.device
        columns = torch.tensor(self._lengths, device=device)  # (rows,): each row's new token goes behind its last one
        # In the view (slots * heads * room, head_dim) that `update` writes to, head h of slot s starts at
        # (s * heads + h) * room. One index_copy_ per tensor then stores all rows, at any lengths.
        starts = torch.arange(rows * heads, device=device).view(rows, heads) * room
        self._new_places = (starts + columns[:, None]).flatten()
        if min(self._lengths) == longest - 1:
            return None
        # column c is hidden from a row whose new token is at column n < c
        hidden = torch.arange(longest, device=device)[None, :] > columns[:, None]
        mask = self._empty.new_zeros(hidden.shape).masked_fill_(hidden, float("-inf"))
        return mask[:, None, None, :]

    def finish_step(self) -> None:
        """Count the tokens of the pass. A pass that fails before this call leaves the lengths unchanged."""
        self._lengths = [length + 1 for length in self._lengths]

    def update(self, states: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Store the keys and values of the new tokens of one layer.

        Args:
            states: (rows, 2 * kv_heads, head_dim), the keys and then the values.
            layer: index of the layer.

        Returns:
            Keys and values (rows, kv_heads, longest, head_dim) to attend to.
        """
        own, size = self._states[layer], states.shape[-1]
        own.view(-1, size).index_copy_(0, self._new_places, states.reshape(-1, size))
        keys, values = own[: len(self._lengths), :, : self._longest].chunk(2, dim=1)
        return keys, values

    def row(self, slot: int) -> list[Tensor]:
        """Keys and values of one row, for each layer (2 * kv_heads, tokens, head_dim); valid until rows change."""
        return [states[slot, :, : self._lengths[slot]] for states in self._states]

    def leave(self, slot: int, *, wipe: bool = False) -> None:
        """Free a slot; the last row moves into it.

        Args:
            slot: index of the row in the batch.
            wipe: clear its values, which may not be finite: a mask does not hide a NaN.
        """
        last = len(self._lengths) - 1
        for tensor in self._states:
            if wipe:
                tensor[slot].zero_()
            if slot != last:
                tensor[slot, :, : self._lengths[last]] = tensor[last, :, : self._lengths[last]]
        self._lengths[slot] = self._lengths[last]
        self._lengths.pop()
        self._shrink()

    def _reserve(self, rows: int, tokens: int) -> None:
        has_rows, has_tokens = self._room
        tokens = max(tokens, *self._lengths, 0)
        if rows > has_rows or tokens > has_tokens:
            more = grown(rows, has_rows, _ROW_BLOCK) if rows > has_rows else has_rows
            self._resize(more, max(round_up(tokens, _TOKEN_BLOCK), has_tokens))

    def _shrink(self) -> None:
        rows = round_up(len(self._lengths), _ROW_BLOCK)
        tokens = round_up(max(self._lengths, default=0), _TOKEN_BLOCK)
        has_rows, has_tokens = self._room
        if rows * tokens * _SHRINK_FACTOR <= has_rows * has_tokens:
            with suppress(OSError, RuntimeError):  # no memory for the copy: it stays as large as it is
                self._resize(rows, tokens)

    def _resize(self, rows: int, tokens: int) -> None:
        _, heads, _, size = self._empty.shape
        # A step writes to the same places in every layer. If this fails halfway, layers differ; the room of 0 has them
        # resized again before their next use.
        self._room = (0, 0)
        for layer, old in enumerate(self._states):
            # zeros, not uninitialised memory: masked columns must be finite
            new = mapped_zeros(self._empty, rows, heads, tokens, size)
            for row, length in enumerate(self._lengths):
                new[row, :, :length] = old[row, :, :length]
            self._states[layer] = new
        self._room = (rows, tokens)
