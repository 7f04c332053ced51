"""How the next token is chosen from logits: greedy, or drawn with a seed of the row's own.

The order is vLLM's: biases, penalties, temperature, min-p, top-k, top-p. A row's choice depends on its own logits,
tokens, parameters and seed, never on the rows that it is decoded with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor

from llgbm.errors import ConfigError

MAX_LOGPROBS = 20
_NUCLEUS_GUESS = 1024
"""Sorting the whole vocabulary is slow, and a nucleus is nearly always within this many tokens."""


@dataclass(frozen=True)
class SamplingParams:
    """Sampling parameters of one row.

    Attributes:
        max_tokens: tokens at most, at least 1.
        temperature: 0 is greedy; above, logits are divided by it.
        top_p: only the most likely tokens that together reach this probability are drawn from; 0 is greedy.
        top_k: number of most likely tokens that are drawn from; 0 for all.
        min_p: only tokens with at least this part of the likeliest token's probability are drawn from.
        repetition_penalty: logits of tokens of the prompt or the answer are divided by it where they are positive and
            multiplied by it where they are not. 1 for none.
        presence_penalty: taken off the logits of all tokens of the answer so far.
        frequency_penalty: taken off the logits once for each time that the answer has the token.
        logit_bias: (token, number) pairs; the number is added to the token's logit.
        seed: the same seed gives the same draws; None a fresh one.
        stop_token_ids: tokens that end the answer; None for those of the base's generation config, () for none.
        logprobs: number of likeliest tokens whose log probabilities are returned, in addition to that of the chosen
            token; None for no log probabilities.

    Raises:
        ConfigError: a value is out of range.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None
    stop_token_ids: tuple[int, ...] | None = None
    logprobs: int | None = None

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ConfigError(f"max_tokens must be at least 1, not {self.max_tokens}")
        if not 0 <= self.temperature < float("inf"):
            raise ConfigError(f"temperature must be 0 or a positive number, not {self.temperature}")
        if not 0 <= self.top_p <= 1:
            raise ConfigError(f"top_p must be 0 to 1, not {self.top_p}")
        if self.top_k < 0:
            raise ConfigError(f"top_k must be 0 or more, not {self.top_k}")
        if not 0 <= self.min_p <= 1:
            raise ConfigError(f"min_p must be 0 to 1, not {self.min_p}")
        if not 0 < self.repetition_penalty < float("inf"):
            raise ConfigError(f"repetition_penalty must be a positive number, not {self.repetition_penalty}")
        for name in ("presence_penalty", "frequency_penalty"):
            if not isfinite(getattr(self, name)):
                raise ConfigError(f"{name} must be a number, not {getattr(self, name)}")
        if any(token < 0 or not isfinite(value) for token, value in self.logit_bias):
            raise ConfigError("logit_bias must have tokens of 0 or more and finite numbers")
        if self.seed is not None and not -(2**63) <= self.seed < 2**63:
            raise ConfigError(f"seed must fit into 64 bits, not {self.seed}")
        if self.logprobs is not None and not 0 <= self.logprobs <= MAX_LOGPROBS:
            raise ConfigError(f"logprobs must be 0 to {MAX_LOGPROBS}, not {self.logprobs}")


def make_generator(seed: int | None) -> torch.Generator:
    """The random generator of one row."""
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    return generator


def adjusted(logits: Tensor, params: SamplingParams, prompt: Sequence[int], output: Sequence[int]) -> Tensor:
    """Logits (vocabulary,) float32 with the biases and penalties of `params`; the same tensor if there are none.

    Args:
        logits: as the model made them.
        params: of the row.
        prompt: the row's token ids before its answer.
        output: the answer's so far.
    """
    repeats = params.repetition_penalty != 1
    counts = bool(output) and (params.presence_penalty != 0 or params.frequency_penalty != 0)
    if not (params.logit_bias or repeats or counts):
        return logits
    logits = logits.clone()
    for token, bias in params.logit_bias:
        logits[token] += bias
    if repeats:
        seen = torch.tensor(sorted({*prompt, *output}), dtype=torch.long)
        values = logits[seen]
        penalty = params.repetition_penalty
        logits[seen] = torch.where(values > 0, values / penalty, values * penalty)
    if counts:
        tokens, times = torch.tensor(output).unique(return_counts=True)
        logits[tokens] -= params.frequency_penalty * times + params.presence_penalty
    return logits


def sample(logits: Tensor, params: SamplingParams, generator: torch.Generator) -> int:
    """Draw one token from logits (vocabulary,) float32, with one uniform number of `generator`.

    `params.temperature` must be above 0. The uniform number selects a token from the cumulative distribution in
    the order of the tokens, so logits that differ in the last bits nearly always give the same token.
    """
    # the maximum is subtracted first, so a tiny temperature cannot overflow
    probabilities = ((logits - logits.max()) / params.temperature).softmax(-1)
    point = torch.rand((), generator=generator, dtype=torch.double)
    if params.min_p > 0:
        probabilities = probabilities.masked_fill(probabilities < params.min_p * probabilities.max(), 0)
    if params.top_p == 1 and not params.top_k:
        return _pick(probabilities.double().cumsum(0), point)
    size = len(probabilities)
    values, tokens = probabilities.topk(min(params.top_k or _NUCLEUS_GUESS, size))
    reached = values.double().cumsum(0)
    # top-p is a part of what min-p and top-k have left
    whole = reached[-1] if params.top_k else probabilities.double().sum()
    if reached[-1] < params.top_p * whole:
        values, tokens = probabilities.sort(descending=True)
        reached = values.double().cumsum(0)
    kept = int((reached < params.top_p * whole).sum()) + 1
    # In the order of the tokens, not of their probabilities: two nearly equal ones change places in the latter with the
    # last bits of the logits, and a draw that fell on one of them would become the other.
    tokens, order = tokens[:kept].sort()
    return int(tokens[_pick(values[:kept][order].double().cumsum(0), point)])


def _pick(reached: Tensor, point: Tensor) -> int:
    """First index whose cumulative probability exceeds `point` times the total."""
    index = int(torch.searchsorted(reached, point * reached[-1], right=True))
    return min(index, len(reached) - 1)


def log_probabilities(logits: Tensor, token: int, count: int) -> tuple[float, tuple[tuple[int, float], ...]]:
    """Natural log probability of `token`, and (token, log probability) of the `count` likeliest tokens.

    From logits (vocabulary,) before everything that changes a choice: what the model thinks, not how it was sampled.
    """
    logs = logits.log_softmax(-1)
    best = logs.topk(count)
    pairs = tuple((int(t), float(v)) for t, v in zip(best.indices, best.values, strict=True))
    return float(logs[token]), pairs
