"""Continuous batching with a key-value cache and one adapter per row: rows join and leave between tokens.

Tokens in, tokens out: no text, no HTTP, no threads. A row's result does not depend on rows that join, leave or fail
next to it, up to the rounding of float32 sums. With bfloat16 storage on a CPU without AVX512-BF16 or AMX it holds up
to the rounding of bfloat16: see `Decoder`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from llgbm.base import Base
from llgbm.decoding.decode_pass import DecodePass
from llgbm.decoding.json_grammar import Constraint, JsonGrammar, TokenTable, token_table
from llgbm.decoding.kv_cache import RowCache
from llgbm.decoding.sampling import SamplingParams, adjusted, log_probabilities, make_generator, sample
from llgbm.decoding.stacked_lora import StackedLoRA
from llgbm.errors import AdapterMismatchError, ConfigError, ContextLengthError
from llgbm.functional import FunctionalLoRA, PreparedLoRA
from llgbm.lora import LoRAWeights

FinishReason = Literal["stop", "length", "error"]

_MIN_FILL = 0.75
"""Rows share a prefill if none is shorter than this fraction of the longest: padding costs compute too."""


@dataclass(eq=False)
class DecodeRequest:
    """One request to the decoder.

    Attributes:
        prompt: token ids, at least one.
        adapter: None for the plain base.
        params: how to decode it.
        grammar: what the answer must be; None for any text.
        output: the tokens so far, without the token that stopped it.
        finish_reason: None while it can go on; "error" if the model's numbers were not finite any more, or if the
            grammar had too many open possibilities: then `problem` has the grammar's words.
    """

    prompt: Sequence[int]
    adapter: LoRAWeights | None = None
    params: SamplingParams = field(default_factory=SamplingParams)
    grammar: JsonGrammar | None = None
    output: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    problem: str | None = None


class Step(NamedTuple):
    """One token of one row.

    Attributes:
        row: the request given to `Decoder.add`.
        token: its new token; the stop token with finish reason "stop", -1 with "error".
        logprob: of the token, if `params.logprobs` is set.
        top_logprobs: (token, log probability) of the likeliest tokens, best first.
        finish_reason: not None in the last step of a row; the row has then left the decoder.
    """

    row: DecodeRequest
    token: int
    logprob: float | None
    top_logprobs: tuple[tuple[int, float], ...]
    finish_reason: FinishReason | None


class _Running(NamedTuple):
    row: DecodeRequest
    adapter: LoRAWeights | None
    generator: torch.Generator
    constraint: Constraint | None


class Decoder:
    """Decodes a changing batch of rows on one base. Not thread-safe.

    Hooks are on the model only during a forward pass, so between calls the base is plain.

    With bfloat16 storage on a CPU without AVX512-BF16 or AMX, up to eight rows are multiplied in bfloat16, and more
    rows in float32 (`llgbm.linears.frozen_linear`). There the numbers of a row depend on the number of running rows,
    within the rounding of bfloat16.

    Args:
        base: the frozen model.
        max_context: limit of prompt and answer together, in tokens; None for the model's own limit.
        prefill_tokens: largest batch of prompts, in tokens with padding. A longer prompt runs alone.
    """

    def __init__(self, base: Base, *, max_context: int | None = None, prefill_tokens: int = 2048) -> None:
        model: Any = base.model
        limit = base.max_positions
        if max_context is not None and not 1 < max_context <= limit:
            raise ConfigError(f"max_context must be 2 to {limit}, the model's own limit, not {max_context}")
        self.max_context = limit if max_context is None else max_context
        self.stop_token_ids = _stop_token_ids(model.generation_config)
        self._model = model
        self._prefill_tokens = prefill_tokens
        self._vocabulary = min(model.config.vocab_size, len(base.tokenizer))
        self._tokenizer = base.tokenizer
        embedding: Tensor = model.get_input_embeddings().weight
        self._dtype, self._device = embedding.dtype, embedding.device
        spec = base.spec
        self._cache = RowCache(spec.num_layers, spec.num_kv_heads, spec.head_dim, self._dtype, self._device)
        self._pass = DecodePass(base.model, compiled=self._device.type == "cuda")
        self._functional = FunctionalLoRA(base.model)
        self._stacked = StackedLoRA(embedding)
        self._running: list[_Running] = []
        self._prepared: PreparedLoRA | None = None

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

    def add(self, rows: Sequence[DecodeRequest]) -> list[Step]:
        """Run the prompts of new rows; they then take part in every `step`.

        Returns:
            The first token of each row, in the given order. A row may already end with it.

        Raises:
            ConfigError, ContextLengthError, AdapterMismatchError: as `require_valid`; no row is added.
        """
        for row in rows:
            self.require_valid(row)
        if len({id(row) for row in [*self.rows, *rows]}) != len(self._running) + len(rows):
            raise ConfigError("a row is added twice")
        try:
            steps = [step for group in self._prefill_groups(rows) for step in self._prefill(group)]
        except BaseException:
            for row in rows:
                self.remove(row)
                row.output.clear()
                row.finish_reason = row.problem = None
            raise
        order = {id(row): place for place, row in enumerate(rows)}
        return sorted(steps, key=lambda step: order[id(step.row)])

    def step(self) -> list[Step]:
        """Decode one token for every running row; an empty list without rows."""
        if not self._running:
            return []
        if self._prepared is None:
            with torch.inference_mode():
                self._prepared = self._stacked.arrange([running.adapter for running in self._running])
        with torch.inference_mode(), self._functional.applied(self._prepared):
            positions = torch.tensor(self._cache.lengths, device=self._device)
            mask = self._cache.start_step()
            last = torch.tensor([running.row.output[-1] for running in self._running], device=self._device)
            hidden = self._pass(last, positions, mask, self._cache)
            self._cache.finish_step()
        return self._choose(self._running, hidden)

    def remove(self, row: DecodeRequest) -> bool:
        """Take a row out and free its memory; False if it is not running."""
        return self._remove(row, wipe=False)

    @property
    def _token_table(self) -> TokenTable:
        return token_table(self._tokenizer, self._vocabulary, tuple(sorted(self.stop_token_ids)))

    def _prefill_groups(self, rows: Sequence[DecodeRequest]) -> list[list[DecodeRequest]]:
        groups: list[list[DecodeRequest]] = []
        for row in sorted(rows, key=lambda r: len(r.prompt), reverse=True):
            longest = len(groups[-1][0].prompt) if groups else 0  # prompts come in descending length
            fits = (
                groups
                and (len(groups[-1]) + 1) * longest <= self._prefill_tokens
                and len(row.prompt) >= _MIN_FILL * longest
            )
            if fits:
                groups[-1].append(row)
            else:
                groups.append([row])
        return groups

    def _prefill(self, rows: list[DecodeRequest]) -> list[Step]:
        adapters = self._adapters_of(rows)
        new = [
            _Running(
                row,
                adapter,
                make_generator(row.params.seed),
                None if row.grammar is None else self._token_table.start(row.grammar),
            )
            for row, adapter in zip(rows, adapters, strict=True)
        ]
        lengths = [len(row.prompt) for row in rows]
        width = max(lengths)
        ids = torch.tensor([[*row.prompt, *[0] * (width - len(row.prompt))] for row in rows], device=self._device)
        positions = torch.arange(width, device=self._device)[None, :]
        with torch.inference_mode():
            self._cache.start_joining(lengths)
            self._running += new
            self._prepared = None
            with self._functional.applied([running.adapter for running in new]):
                # no mask: prompts are padded at the right, so causal attention never reads the padding
                hidden = self._prompt_states(ids, positions)
        return self._choose(new, hidden[torch.arange(len(rows)), torch.tensor(lengths) - 1])

    def _adapters_of(self, rows: Sequence[DecodeRequest]) -> list[LoRAWeights | None]:
        """The adapters in the model's dtype and device; one object per adapter, for new and running rows together."""
        known = {id(running.row.adapter): running.adapter for running in self._running}
        for row in rows:
            if row.adapter is not None and id(row.adapter) not in known:
                known[id(row.adapter)] = row.adapter.map(lambda t: t.detach().to(self._device, self._dtype))
        return [None if row.adapter is None else known[id(row.adapter)] for row in rows]

    def _prompt_states(self, ids: Tensor, positions: Tensor) -> Tensor:
        """Last hidden states (rows, tokens, hidden) of joining rows."""
        out = self._model.model(
            input_ids=ids,
            position_ids=positions,
            attention_mask={"full_attention": None},
            past_key_values=self._cache,
            use_cache=True,
        )
        hidden: Tensor = out.last_hidden_state
        return hidden

    def _choose(self, running: Sequence[_Running], hidden: Tensor) -> list[Step]:
        """The next token of each row from its last hidden state (rows, hidden); rows that end are removed."""
        with torch.inference_mode():
            # (rows, vocabulary); the head may be padded beyond the vocabulary
            logits: Tensor = self._model.lm_head(hidden)[:, : self._vocabulary].float().cpu()
            best = logits.max(dim=-1)
            finite = best.values.isfinite().tolist()
            steps = [
                self._next(r, logits[i], int(best.indices[i])) if finite[i] else _failed(r.row)
                for i, r in enumerate(running)
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
            self._cache.leave(slot, wipe=wipe)
        # as in the cache: the last row moves into the free slot
        self._running[slot] = self._running[-1]
        self._running.pop()
        self._prepared = None
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
