"""Prefill: prompts are read in turns of a bounded number of tokens, so that running rows wait for one turn at most.

Short prompts are read together, padded at the right. A long prompt is read in pieces, each of which attends to the
pieces before it. Until a prompt is complete its keys and values are its own, outside the cache of the running rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from llgbm.base import Base
from llgbm.decoding.request import DecodeRequest
from llgbm.errors import ConfigError
from llgbm.functional import FunctionalLoRA
from llgbm.lora import LoRAWeights

_MIN_FILL = 0.75
"""Prompts share a pass if none is shorter than this fraction of the longest: padding costs compute too."""


@dataclass(eq=False)
class Prompt:
    """A prompt on its way into the batch.

    Attributes:
        row: the request that it belongs to.
        adapter: in the dtype and on the device of the model; None for the plain base.
        states: keys and values of the pieces so far; None before the second piece.
    """

    row: DecodeRequest
    adapter: LoRAWeights | None
    states: DynamicCache | None = None


class PromptQueue:
    """Prompts in line, first in, first out, in two lines: those that fit into one turn, and longer ones.

    While both lines have prompts, turns alternate between them. A long prompt thus gets every second turn, however
    many short ones arrive. A short one waits for one piece of a long prompt at most, plus one for each further turn
    that the short ones before it need. Long prompts are read one after the other, so only one has unfinished states.

    A prompt stays in line until it is removed.

    Args:
        limit: tokens of a turn, padding included.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._short: list[Prompt] = []
        self._long: list[Prompt] = []
        self._long_is_next = False

    def __iter__(self) -> Iterator[Prompt]:
        return iter([*self._short, *self._long])

    def __len__(self) -> int:
        return len(self._short) + len(self._long)

    def put(self, prompt: Prompt) -> None:
        """Add a prompt at the end of its line."""
        (self._short if len(prompt.row.prompt) <= self._limit else self._long).append(prompt)

    def remove(self, prompt: Prompt) -> None:
        """Take a prompt out, read or not."""
        (self._short if prompt in self._short else self._long).remove(prompt)

    def turn(self) -> list[list[Prompt]]:
        """The next turn: the prompts of each pass. The pass of a long prompt reads its next piece."""
        takes_long = bool(self._long) and (self._long_is_next or not self._short)
        self._long_is_next = bool(self._long) and not takes_long
        if takes_long:
            return [[self._long[0]]]
        passes: list[list[Prompt]] = []
        for count in range(1, len(self._short) + 1):
            more = self._passes(self._short[:count])
            if sum(len(prompts) * len(prompts[0].row.prompt) for prompts in more) > self._limit:
                break
            passes = more
        return passes

    def _passes(self, prompts: Sequence[Prompt]) -> list[list[Prompt]]:
        passes: list[list[Prompt]] = []
        for prompt in sorted(prompts, key=lambda p: len(p.row.prompt), reverse=True):
            # prompts come in descending length
            if passes and len(prompt.row.prompt) >= _MIN_FILL * len(passes[-1][0].row.prompt):
                passes[-1].append(prompt)
            else:
                passes.append([prompt])
        return passes


class ReadPrompts(NamedTuple):
    """Complete prompts, as the model has read them.

    Attributes:
        hidden: (prompts, hidden), the last hidden state of each prompt.
        keys, values: for each layer (prompts, kv_heads, longest, head_dim), padded at the right.
    """

    hidden: Tensor
    keys: list[Tensor]
    values: list[Tensor]


class PromptReader:
    """Runs passes over prompts on one base.

    A long prompt is cut at multiples of the limit, so its numbers do not depend on other prompts.

    Args:
        base: its model has SDPA attention in every layer.
        functional: applies adapters to the same model.
        limit: tokens of a pass, padding included.

    Raises:
        ConfigError: the limit is below 1.
    """

    def __init__(self, base: Base, functional: FunctionalLoRA, limit: int) -> None:
        if limit < 1:
            raise ConfigError(f"prefill_tokens must be at least 1, not {limit}")
        self._model: Any = base.model
        self._functional, self._limit = functional, limit
        self._dtype, self._device = base.activation_dtype, base.device

    def read(self, prompts: Sequence[Prompt]) -> ReadPrompts | None:
        """Read several prompts, or the next piece of one that is longer than the limit.

        A pass that fails leaves a long prompt's states unusable; short prompts can be read again.

        Returns:
            None if the prompt has more pieces.
        """
        longest = max(len(prompt.row.prompt) for prompt in prompts)
        states = DynamicCache() if prompts[0].states is None else prompts[0].states
        start = states.get_seq_length()
        stop = min(longest, start + self._limit)
        pieces = [prompt.row.prompt[start:stop] for prompt in prompts]
        width = stop - start
        ids = torch.tensor([[*piece, *[0] * (width - len(piece))] for piece in pieces], device=self._device)
        with torch.inference_mode(), self._functional.applied([prompt.adapter for prompt in prompts]):
            out = self._model.model(
                input_ids=ids,
                position_ids=torch.arange(start, stop, device=self._device)[None, :],
                attention_mask={"full_attention": self._mask(start, stop)},
                past_key_values=states,
                use_cache=True,
            )
        if stop < longest:
            prompts[0].states = states
            return None
        last = torch.tensor([len(piece) - 1 for piece in pieces], device=self._device)
        hidden: Tensor = out.last_hidden_state[torch.arange(len(prompts), device=self._device), last]
        layers: Any = states.layers  # typed as if a layer might have no states yet
        return ReadPrompts(hidden, [layer.keys for layer in layers], [layer.values for layer in layers])

    def _mask(self, start: int, stop: int) -> Tensor | None:
        """Additive mask (1, 1, tokens, stop) of the tokens from `start` to `stop`.

        None from the beginning of a prompt: attention is then causal without a mask, which is faster. Padding is at
        the right, so no token of a prompt reads it.
        """
        if start == 0:
            return None
        hidden = torch.full((stop - start, stop), float("-inf"), dtype=self._dtype, device=self._device)
        return hidden.triu(start + 1)[None, None]
