"""Prefill: prompts are read in turns of a bounded number of tokens, so that running rows wait for one turn at most.

Short prompts are read together, padded at the right. A long prompt is read in pieces, each of which attends to the
pieces before it. Until a prompt is complete its keys and values are its own, outside the cache of the running rows.
What another prompt has read with the same adapter is not read again: only the tokens that are left count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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

_KNOWN_COST = 16
"""In a turn, this many tokens that are taken over count as one that is read: they are copied and attended to."""
_MIN_FILL = 0.75
"""Prompts share a pass if none is shorter than this fraction of the longest: padding costs compute too."""


@dataclass(eq=False)
class Prompt:
    """A prompt on its way into the batch.

    Attributes:
        row: the request that it belongs to.
        adapter: in the dtype and on the device of the model; None for the plain base.
        states: keys and values of the pieces so far; None before the second piece.
        known: number of tokens that it can take over from others; not used from the second piece on.
    """

    row: DecodeRequest
    adapter: LoRAWeights | None
    states: DynamicCache | None = None
    known: int = 0

    @property
    def left(self) -> int:
        """Number of tokens to read."""
        return len(self.row.prompt) - (self.known if self.states is None else self.states.get_seq_length())


class PromptQueue:
    """Prompts in line, first in, first out, in two lines: those whose rest fits into one turn, and longer ones.

    While both lines have prompts, turns alternate between them. A long prompt thus gets every second turn, however
    many short ones arrive. A short one waits for one piece of a long prompt at most, plus one for each further turn
    that the short ones before it need. Long prompts are read one after the other, so only one has unfinished states.
    A prompt may change lines while it waits, as others finish of which it can take over a part.

    A prompt stays in line until it is removed.

    Args:
        limit: tokens of a turn, padding included.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._prompts: list[Prompt] = []
        self._long_is_next = False

    def __iter__(self) -> Iterator[Prompt]:
        return iter(self._prompts)

    def __len__(self) -> int:
        return len(self._prompts)

    def put(self, prompt: Prompt) -> None:
        """Add a prompt at the end of its line."""
        self._prompts.append(prompt)

    def remove(self, prompt: Prompt) -> None:
        """Take a prompt out, read or not."""
        self._prompts.remove(prompt)

    def turn(self, known: Callable[[Prompt], int] = lambda prompt: 0) -> list[list[Prompt]]:
        """The next turn: the prompts of each pass. The pass of a long prompt reads its next piece.

        Args:
            known: how many tokens a prompt can take over; not called for all prompts of the line.
        """
        short: list[Prompt] = []
        long: list[Prompt] = []
        for prompt in self._prompts:
            if prompt.states is None and len(prompt.row.prompt) > self._limit:
                prompt.known = known(prompt)
            (short if prompt.states is None and prompt.left <= self._limit else long).append(prompt)
        takes_long = bool(long) and (self._long_is_next or not short)
        self._long_is_next = bool(long) and not takes_long
        if takes_long:
            return [[next((prompt for prompt in long if prompt.states is not None), long[0])]]
        passes: list[list[Prompt]] = []
        for count, prompt in enumerate(short, start=1):
            prompt.known = known(prompt)
            more = self._passes(short[:count])
            if passes and sum(map(_cost, more)) > self._limit:
                break
            passes = more
        return passes

    def _passes(self, prompts: Sequence[Prompt]) -> list[list[Prompt]]:
        passes: list[list[Prompt]] = []
        for prompt in sorted(prompts, key=lambda p: (p.known, p.left), reverse=True):
            # those that take over equally much come in descending length
            first = passes[-1][0] if passes else None
            if first is not None and prompt.known == first.known and prompt.left >= _MIN_FILL * first.left:
                passes[-1].append(prompt)
            else:
                passes.append([prompt])
        return passes


def _cost(prompts: Sequence[Prompt]) -> int:
    """Tokens of a pass, the first of which is the longest prompt, as they count in a turn."""
    return len(prompts) * (prompts[0].left + prompts[0].known // _KNOWN_COST)


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

    A long prompt is cut at multiples of the limit from its first token that is read.

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

    def read(self, prompts: Sequence[Prompt], known: Sequence[Sequence[Tensor]] = ()) -> ReadPrompts | None:
        """Read several prompts, or the next piece of one that is longer than the limit.

        A pass that fails leaves a long prompt's states unusable; short prompts can be read again.

        Args:
            prompts: of this pass.
            known: for each of them, for each layer, keys and values of its first tokens (2 * kv_heads, n, head_dim),
                of equally many for all; empty if all is read, and for a prompt of which a piece was read.

        Returns:
            None if the prompt has more pieces.
        """
        longest = max(len(prompt.row.prompt) for prompt in prompts)
        states = DynamicCache() if prompts[0].states is None else prompts[0].states
        with torch.inference_mode():
            for layer, of_prompts in enumerate(zip(*known, strict=True)):
                keys, values = torch.stack(of_prompts).chunk(2, dim=1)
                states.update(keys, values, layer)
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
