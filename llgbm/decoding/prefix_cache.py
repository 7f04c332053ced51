"""Keys and values of what ended rows have read, for prompts with the same adapter that begin alike.

The system message, a description, examples and the earlier turns of a conversation stand at the beginning of every
prompt, and their keys and values depend on nothing that follows. They do depend on the adapter.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llgbm.decoding.mapped import mapped_zeros
from llgbm.lora import LoRAWeights

_BLOCK = 8
"""A prompt takes over a multiple of this many tokens, so that more prompts have equally many left and share a pass."""
_MOST = 128
"""Beginnings that are kept at most: each is compared with each prompt."""

Tokens = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Beginning:
    """Tokens that were read with one adapter.

    Attributes:
        tokens: (n,) their ids.
        states: gives for each layer the keys, then the values, (2 * kv_heads, n, head_dim).
    """

    tokens: Tokens
    states: Callable[[], Sequence[Tensor]]

    def shared_with(self, prompt: Tokens) -> int:
        """How many tokens a prompt can take over: a multiple of `_BLOCK`, without the last token of the prompt."""
        return min(_shared(self.tokens, prompt), len(prompt) - 1) // _BLOCK * _BLOCK


@dataclass(frozen=True, eq=False)
class _Kept:
    adapter: weakref.ref[LoRAWeights] | None
    beginning: Beginning

    def is_of(self, adapter: LoRAWeights | None) -> bool:
        if self.adapter is None:
            return adapter is None
        return adapter is not None and self.adapter() is adapter

    @property
    def is_dead(self) -> bool:
        return self.adapter is not None and self.adapter() is None


class PrefixCache:
    """The most recently used beginnings of ended rows. Not thread-safe.

    Those of an adapter that is in use nowhere else cannot be found any more, and go with the next `put`.

    Args:
        limit: tokens that are kept in all. A row is kept up to half of them.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept: list[_Kept] = []  # the last used is the last one

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return sum(len(kept.beginning.tokens) for kept in self._kept)

    def of(self, adapter: LoRAWeights | None) -> Iterator[Beginning]:
        """What was read with this adapter, the last used first."""
        return (kept.beginning for kept in reversed(self._kept) if kept.is_of(adapter))

    def find(
        self,
        prompt: Sequence[int],
        adapter: LoRAWeights | None,
        running: Iterable[tuple[LoRAWeights | None, Beginning]],
    ) -> tuple[int, Beginning | None]:
        """How many tokens of a prompt were read with its adapter at most, and by which `Beginning`.

        Args:
            prompt: token ids.
            adapter: of the prompt.
            running: what running rows have read, each with its adapter.
        """
        best: tuple[int, Beginning | None] = (0, None)
        tokens = np.array(prompt)
        for one in chain((one for its, one in running if its is adapter), self.of(adapter)):
            shared = one.shared_with(tokens)
            if shared > best[0]:
                best = shared, one
        return best

    def use(self, beginning: Beginning) -> None:
        """Make it the last used, if it is kept."""
        self._kept.sort(key=lambda kept: kept.beginning is beginning)  # the others keep their order

    def put(self, adapter: LoRAWeights | None, beginning: Beginning) -> None:
        """Keep a copy. Beginnings of it are removed; if it is a beginning of another, nothing is copied.

        Without memory for the copy, nothing is kept.
        """
        length = min(len(beginning.tokens), self._limit // 2)
        if length < _BLOCK:
            return
        tokens, parts = beginning.tokens[:length], []
        for other in self.of(adapter):
            shared = _shared(other.tokens, tokens)
            if shared == length:
                self.use(other)
                return
            if shared == len(other.tokens):
                parts.append(other)
        self._kept = [kept for kept in self._kept if not kept.is_dead and kept.beginning not in parts]
        with suppress(OSError, RuntimeError):
            states = [layer[:, :length] for layer in beginning.states()]
            copies = mapped_zeros(states[0], len(states), *states[0].shape)
            torch.stack(states, out=copies)
            reference = None if adapter is None else weakref.ref(adapter)
            self._kept.append(_Kept(reference, Beginning(tokens, copies.unbind)))
        while self.tokens > self._limit or len(self._kept) > _MOST:
            del self._kept[0]


def _shared(one: Tokens, other: Tokens) -> int:
    """Number of tokens with which both begin."""
    length = min(len(one), len(other))
    differs = one[:length] != other[:length]
    return int(differs.argmax()) if differs.any() else length
