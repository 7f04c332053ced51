"""Continuous batching with a key-value cache and one adapter per row: rows join and leave between tokens.

A row joins by `start` and calls of `prefill`, between which running rows go on by `step`; or by `add` in one call.
Tokens in, tokens out: no text, no HTTP, no threads. A row's result does not depend on rows that join, leave or fail
next to it, up to the rounding of float32 sums. With bfloat16 storage on a CPU without AVX512-BF16 or AMX it holds up
to the rounding of bfloat16: see `Decoder`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from llgbm.base import Base
from llgbm.decoding.decode_pass import DecodePass
from llgbm.decoding.json_grammar import Constraint, token_table
from llgbm.decoding.kv_cache import RowCache
from llgbm.decoding.prefill import Prompt, PromptQueue, PromptReader
from llgbm.decoding.prefix_cache import Beginning, PrefixCache
from llgbm.decoding.request import DecodeRequest, FinishReason, PrefillError, Step
from llgbm.decoding.sampling import SamplingParams, adjusted, log_probabilities, make_generator, sample
from llgbm.decoding.stacked_lora import RowAdapters, StackedLoRA
from llgbm.errors import AdapterMismatchError, ConfigError, ContextLengthError
from llgbm.functional import FunctionalLoRA
from llgbm.lora import LoRAWeights

__all__ = ["DecodeRequest", "Decoder", "FinishReason", "PrefillError", "Step", "generate"]


class _Running(NamedTuple):
    row: DecodeRequest
    adapter: LoRAWeights | None
    generator: torch.Generator
    constraint: Constraint | None


class Decoder:
    """Decodes a changing batch of rows on one base. Not thread-safe.

    Hooks are on the model only while it reads prompts, so between calls the base is plain. A step of running rows has
    none (`llgbm.decoding.decode_pass`).

    With bfloat16 storage on a CPU without AVX512-BF16 or AMX, up to eight rows are multiplied in bfloat16, and more
    rows in float32 (`llgbm.linears.frozen_linear`). There the numbers of a row depend on the number of running rows,
    within the rounding of bfloat16.

    Args:
        base: the frozen model.
        max_context: limit of prompt and answer together, in tokens; None for the model's own limit.
        prefill_tokens: prompt tokens that one call of `prefill` reads at most, padding included. A longer prompt is
            read in pieces of this many tokens.
        prefix_tokens: tokens of finished rows whose keys and values are kept. A prompt that begins like what a running
            or finished row with the same adapter has read takes these over. 0: every prompt is read in full.
    """

    def __init__(
        self,
        base: Base,
        *,
        max_context: int | None = None,
        prefill_tokens: int = 2048,
        prefix_tokens: int = 4096,
    ) -> None:
        model: Any = base.model
        limit = base.max_positions
        if max_context is not None and not 1 < max_context <= limit:
            raise ConfigError(f"max_context must be 2 to {limit}, the model's own limit, not {max_context}")
        self.max_context = limit if max_context is None else max_context
        self.stop_token_ids = _stop_token_ids(model.generation_config)
        self._model = model
        self._vocabulary = min(model.config.vocab_size, len(base.tokenizer))
        self._tokenizer = base.tokenizer
        self._dtype, self._device = base.activation_dtype, base.device
        spec = base.spec
        self._cache = RowCache(spec.num_layers, spec.num_kv_heads, spec.head_dim, self._dtype, self._device)
        self._pass = DecodePass(base.model, compiled=self._device.type == "cuda")
        self._functional = FunctionalLoRA(base.model)
        self._reader = PromptReader(base, self._functional, prefill_tokens)
        self._queue = PromptQueue(prefill_tokens)
        self._shares, self._prefixes = prefix_tokens > 0, PrefixCache(prefix_tokens)
        self._stacked = StackedLoRA(self._pass.groups, torch.empty(0, dtype=self._dtype, device=self._device))
        self._running: list[_Running] = []
        self._adapters: RowAdapters | None = None

    @property
    def rows(self) -> list[DecodeRequest]:
        """The running rows, in no particular order."""
        return [running.row for running in self._running]

    def require_valid(self, row: DecodeRequest) -> None:
        """Check that a row can be decoded.

        Raises:
            ConfigError: the prompt is empty or has an unknown token, or the row ran before.
            ContextLengthError: prompt and requested tokens do not fit into the context.
            AdapterMismatchError: the adapter was made for another base.
        """
        if not row.prompt:
            raise ConfigError("a prompt needs at least one token")
        if not 0 <= min(row.prompt) <= max(row.prompt) < self._vocabulary:
            raise ConfigError(f"a prompt's tokens must be 0 to {self._vocabulary - 1}")
        if row.output or row.finish_reason is not None:
            raise ConfigError("this row ran before; make a new one")
        if any(token >= self._vocabulary for token, _ in row.params.logit_bias):
            raise ConfigError(f"the tokens of logit_bias must be 0 to {self._vocabulary - 1}")
        if row.grammar is not None and row.params.stop_token_ids is not None:
            raise ConfigError("an answer with a grammar ends with the base's own stop tokens; leave stop_token_ids out")
        wanted = len(row.prompt) + row.params.max_tokens
        if wanted > self.max_context:
            raise ContextLengthError(
                f"the prompt has {len(row.prompt)} tokens and up to {row.params.max_tokens} more were asked for, but "
                f"the context holds {self.max_context}; shorten the prompt or ask for at most "
                f"{max(self.max_context - len(row.prompt), 0)} tokens"
            )
        if row.adapter is not None:
            self._functional.require_fits(row.adapter.spec)

    def start(self, row: DecodeRequest) -> None:
        """Put a row in line; calls of `prefill` then read its prompt. `PromptQueue` says in which order.

        Raises:
            ConfigError, ContextLengthError, AdapterMismatchError: as `require_valid`; the row is not put in line.
        """
        self.require_valid(row)
        if any(other is row for other in [*self.rows, *(prompt.row for prompt in self._queue)]):
            raise ConfigError("a row is added twice")
        self._queue.put(Prompt(row, self._adapter_of(row)))

    def prefill(self) -> list[Step]:
        """Read up to `prefill_tokens` prompt tokens of the rows in line.

        Returns:
            The first token of each row whose prompt is complete. Such a row may already end with it; else it takes
            part in every `step` from now on. Empty if no prompt is complete yet, or no row is in line.

        Raises:
            PrefillError: a pass failed. It has the steps of the passes before it; rows that it does not name go on.
        """
        steps: list[Step] = []
        read = self._read_by_running()
        for prompts in self._queue.turn(lambda p: self._prefixes.find(p.row.prompt, p.row.adapter, read)[0]):
            try:
                steps += self._read(prompts)
            except Exception as error:
                rows = [prompt.row for prompt in prompts]
                self._take_back(rows)
                raise PrefillError(rows, steps, error) from error
        return steps

    def add(self, rows: Sequence[DecodeRequest]) -> list[Step]:
        """Read the prompts of new rows to their end; they then take part in every `step`.

        Returns:
            The first token of each row, in the given order. A row may already end with it.

        Raises:
            ConfigError, ContextLengthError, AdapterMismatchError: as `require_valid`; no row is added.
            ConfigError: rows of `start` are still in line.
            PrefillError: a pass failed; no row is added.
        """
        if self._queue:
            raise ConfigError("rows are in line for their prefill; put these in line too, with start")
        steps: list[Step] = []
        started: list[DecodeRequest] = []
        try:
            for row in rows:
                self.start(row)
                started.append(row)
            while self._queue:
                steps += self.prefill()
        except BaseException:
            self._take_back(started)
            raise
        order = {id(row): place for place, row in enumerate(rows)}
        return sorted(steps, key=lambda step: order[id(step.row)])

    def step(self) -> list[Step]:
        """Decode one token for every running row; an empty list without rows."""
        if not self._running:
            return []
        self._functional.require_plain()
        with torch.inference_mode():
            if self._adapters is None:
                self._adapters = self._stacked.arrange([running.adapter for running in self._running])
            positions = torch.tensor(self._cache.lengths, device=self._device)
            mask = self._cache.start_step()
            last = torch.tensor([running.row.output[-1] for running in self._running], device=self._device)
            hidden = self._pass(last, positions, mask, self._cache, self._adapters)
            self._cache.finish_step()
        return self._choose(self._running, hidden)

    def remove(self, row: DecodeRequest) -> bool:
        """Take a row out, in line or running, and free its memory; False if it is neither."""
        prompt = next((prompt for prompt in self._queue if prompt.row is row), None)
        if prompt is not None:
            self._queue.remove(prompt)
            return True
        return self._remove(row, wipe=False)

    def _read(self, prompts: Sequence[Prompt]) -> list[Step]:
        """One pass over prompts; the first tokens, unless they are of a prompt with more pieces."""
        known: list[list[Tensor]] = []
        if prompts[0].states is None:
            read_now = self._read_by_running()
            found = [self._prefixes.find(p.row.prompt, p.row.adapter, read_now) for p in prompts]
            length = min(shared for shared, _ in found)
            if length < prompts[0].known:  # a row has ended since, and what it had read was not kept: plan again
                return []
            known = [[s[:, :length] for s in one.states()] for _, one in found if one is not None and length]
            for prompt, (_, one) in zip(prompts, found, strict=True):
                prompt.row.known_tokens = length
                if one is not None:
                    self._prefixes.use(one)
        read = self._reader.read(prompts, known)
        if read is None:
            return []
        new = [
            _Running(prompt.row, prompt.adapter, make_generator(prompt.row.params.seed), self._constraint(prompt.row))
            for prompt in prompts
        ]
        with torch.inference_mode():
            self._cache.join(read.keys, read.values, [len(prompt.row.prompt) for prompt in prompts])
        self._running += new
        self._adapters = None
        for prompt in prompts:
            self._queue.remove(prompt)
        return self._choose(new, read.hidden)

    def _read_by_running(self) -> list[tuple[LoRAWeights | None, Beginning]]:
        """What the running rows have read, each with its adapter; valid until rows change."""
        if not self._shares:
            return []
        return [(running.row.adapter, self._read_by(slot)) for slot, running in enumerate(self._running)]

    def _read_by(self, slot: int) -> Beginning:
        row, length = self._running[slot].row, self._cache.lengths[slot]
        return Beginning(np.array([*row.prompt, *row.output][:length]), partial(self._cache.row, slot))

    def _constraint(self, row: DecodeRequest) -> Constraint | None:
        if row.grammar is None:
            return None
        return token_table(self._tokenizer, self._vocabulary, tuple(sorted(self.stop_token_ids))).start(row.grammar)

    def _take_back(self, rows: Iterable[DecodeRequest]) -> None:
        for row in rows:
            self.remove(row)
            row.output.clear()
            row.finish_reason = row.problem = row.known_tokens = None

    def _adapter_of(self, row: DecodeRequest) -> LoRAWeights | None:
        """Its adapter in the model's dtype and device: one object per adapter, for all rows that have it."""
        if row.adapter is None:
            return None
        for other in [*self._running, *self._queue]:
            if other.row.adapter is row.adapter:
                placed: LoRAWeights | None = other.adapter
                return placed
        return row.adapter.map(lambda t: t.detach().to(self._device, self._dtype))

    def _choose(self, running: Sequence[_Running], hidden: Tensor) -> list[Step]:
        """The next token of each row from its last hidden state (rows, hidden); rows that end are removed."""
        with torch.inference_mode():
            # (rows, vocabulary); the head may be padded beyond the vocabulary
            logits: Tensor = self._model.lm_head(hidden)[:, : self._vocabulary].float().cpu()
            # numpy finds the place of the largest several times faster than torch; a NaN counts as the largest
            best: list[int] = logits.numpy().argmax(axis=-1).tolist()
            steps = [
                self._next(r, scores, place) if scores[place].isfinite() else _failed(r.row)
                for r, scores, place in zip(running, logits, best, strict=True)
            ]
        for step in steps:
            if step.finish_reason is not None:
                self._remove(step.row, wipe=step.finish_reason == "error")
        return steps

    def _next(self, running: _Running, logits: Tensor, best: int) -> Step:
        row, params, constraint = running.row, running.row.params, running.constraint
        scores = adjusted(logits, params, row.prompt, row.output)
        if constraint is not None:
            scores = constraint.apply(scores)
            if constraint.problem is not None:
                row.problem = constraint.problem
                return _failed(row)
        if params.temperature == 0:
            token = best if scores is logits else int(scores.argmax())
        else:
            token = sample(scores, params, running.generator)
        if constraint is not None:
            constraint.take(token)
        logprob: float | None = None
        top: tuple[tuple[int, float], ...] = ()
        if params.logprobs is not None:
            logprob, top = log_probabilities(logits, token, params.logprobs)
        stops = self.stop_token_ids if params.stop_token_ids is None else params.stop_token_ids
        if token in stops:
            row.finish_reason = "stop"
        else:
            row.output.append(token)
            if len(row.output) >= params.max_tokens:
                row.finish_reason = "length"
        return Step(row, token, logprob, top, row.finish_reason)

    def _remove(self, row: DecodeRequest, *, wipe: bool) -> bool:
        slot = next((i for i, running in enumerate(self._running) if running.row is row), None)
        if slot is None:
            return False
        with torch.inference_mode():
            if not wipe:
                self._prefixes.put(row.adapter, self._read_by(slot))
            self._cache.leave(slot, wipe=wipe)
        # as in the cache: the last row moves into the free slot
        self._running[slot] = self._running[-1]
        self._running.pop()
        self._adapters = None
        if not self._running:
            self._stacked.release()
        return True


def generate(
    base: Base,
    prompts: Iterable[Sequence[int]],
    adapters: Sequence[LoRAWeights | None] | LoRAWeights | None = None,
    params: SamplingParams | None = None,
    *,
    max_rows: int = 16,
) -> list[list[int]]:
    """Decode many prompts, `max_rows` at a time.

    Args:
        base: the frozen model.
        prompts: token ids of each.
        adapters: one for all, or one for each prompt.
        params: the same for all; greedy by default.
        max_rows: rows in the batch; when one ends, the next prompt joins.

    Returns:
        The answer of each prompt, without the stop token.

    Raises:
        AdapterMismatchError: another number of adapters than prompts, an adapter for another base, or one that makes
            logits infinite or NaN.
        ConfigError: `max_rows` is below 1.
        ConfigError, ContextLengthError: as `Decoder.require_valid`.
    """
    if max_rows < 1:
        raise ConfigError(f"max_rows must be at least 1, not {max_rows}")
    prompts = list(prompts)
    each: list[LoRAWeights | None]
    if adapters is None or isinstance(adapters, LoRAWeights):
        each = [adapters] * len(prompts)
    else:
        each = list(adapters)
    if len(each) != len(prompts):
        raise AdapterMismatchError(f"{len(each)} adapters for {len(prompts)} prompts: need one for each")
    params = params or SamplingParams()
    rows = [DecodeRequest(prompt, adapter, params) for prompt, adapter in zip(prompts, each, strict=True)]
    decoder = Decoder(base)
    for row in rows:
        decoder.require_valid(row)
    waiting = rows[::-1]
    while waiting or decoder.rows:
        joining = [waiting.pop() for _ in range(min(max_rows - len(decoder.rows), len(waiting)))]
        decoder.add(joining)
        decoder.step()
    failed = [i for i, row in enumerate(rows) if row.finish_reason == "error"]
    if failed:
        raise AdapterMismatchError(
            f"the logits of prompt {failed[0]} were not finite ({len(failed)} prompts in all); "
            "its adapter is too large, try a smaller scale"
        )
    return [row.output for row in rows]


def _failed(row: DecodeRequest) -> Step:
    row.finish_reason = "error"
    return Step(row, -1, None, (), "error")


def _stop_token_ids(generation_config: Any) -> frozenset[int]:
    ids = generation_config.eos_token_id
    if ids is None:
        raise ConfigError("the base's generation config names no eos_token_id, so nothing would end an answer")
    return frozenset([ids] if isinstance(ids, int) else ids)
