"""Keys and values of what finished rows have read, for prompts with the same adapter that begin alike.

The system message, a description, examples and the earlier turns of a conversation stand at the beginning of every
prompt, and their keys and values depend on nothing that follows. They do depend on the adapter.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llgbm.decoding.mapped import mapped_zeros
from llgbm.lora import LoRAWeights

PREFIX_BLOCK = 8
"""A prompt takes over a multiple of this many tokens, so that more prompts have equally many left and share a pass."""


@dataclass(frozen=True, eq=False)
class Beginning:
    """Tokens that were read with one adapter.

    Attributes:
        tokens: their ids.
        states: gives for each layer the keys, then the values, (2 * kv_heads, tokens, head_dim).
    """

    tokens: tuple[int, ...]
    states: Callable[[], Sequence[Tensor]]

    def shared_with(self, prompt: tuple[int, ...]) -> int:
        """How many tokens a prompt may take over, a multiple of `PREFIX_BLOCK`; its last token must be read."""
        return (_shared(self.tokens, prompt[:-1]) // PREFIX_BLOCK) * PREFIX_BLOCK


class PrefixCache:
    """The most recently used beginnings of finished rows. Not thread-safe.

    Those of an adapter that is in use nowhere else are gone with it.

    Args:
        limit: tokens that are kept in all. A longer row is not kept.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept: list[tuple[weakref.ref[LoRAWeights] | None, Beginning]] = []  # the last used is the last one

    def __len__(self) -> int:
        """Number of tokens."""
        return sum(len(one.tokens) for _, one in self._kept)

    def of(self, adapter: LoRAWeights | None) -> Iterator[Beginning]:
        """What was read with this adapter, the last used first."""
        for reference, one in reversed(self._kept):
            if (None if reference is None else reference()) is adapter and (reference is None) == (adapter is None):
                yield one

    def use(self, beginning: Beginning) -> None:
        """Make it the last used, if it is kept."""
        for place, (_, one) in enumerate(self._kept):
            if one is beginning:
                self._kept.append(self._kept.pop(place))
                return

    def put(self, adapter: LoRAWeights | None, beginning: Beginning) -> None:
        """Keep a copy. It takes the place of all that it begins with, and of none if it is a part of another."""
        if not PREFIX_BLOCK <= len(beginning.tokens) <= self._limit:
            return
        for other in list(self.of(adapter)):
            shared = _shared(other.tokens, beginning.tokens)
            if shared == len(beginning.tokens):
                self.use(other)
                return
            if shared == len(other.tokens):
                self._kept = [(reference, one) for reference, one in self._kept if one is not other]
        states = beginning.states()
        copies = mapped_zeros(states[0], len(states), *states[0].shape)
        torch.stack(list(states), out=copies)
        reference = None if adapter is None else weakref.ref(adapter, self._drop)
        self._kept.append((reference, Beginning(beginning.tokens, copies.unbind)))
        while len(self) > self._limit:
            del self._kept[0]

    def _drop(self, reference: weakref.ref[LoRAWeights]) -> None:
        self._kept = [(other, one) for other, one in self._kept if other is not reference]


def _shared(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """Number of tokens with which both begin."""
    length = min(len(one), len(other))
    if one[:length] == other[:length]:
        return length
    return next(place for place in range(length) if one[place] != other[place])
