"""Choice of the next token from logits: greedy, or temperature and top-p with a seed per row.

A row's choice depends on its own logits, parameters and seed only, not on other rows of the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

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
        max_tokens: maximum number of tokens, at least 1.
        temperature: 0 is greedy; otherwise logits are divided by it.
        top_p: draw from the most likely tokens that together reach this probability.
        seed: equal seeds give equal draws; None takes a fresh one.
        stop_token_ids: tokens that end the answer; None for those of the base's generation config, () for none.
        logprobs: number of likeliest tokens with log probabilities, in addition to each chosen token; None for no log
            probabilities.

    Raises:
        ConfigError: a value is out of range.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop_token_ids: tuple[int, ...] | None = None
    logprobs: int | None = None

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ConfigError(f"max_tokens must be at least 1, not {self.max_tokens}")
        if not 0 <= self.temperature < float("inf"):
            raise ConfigError(f"temperature must be 0 or a positive number, not {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p must be above 0 and at most 1, not {self.top_p}")
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


def sample(logits: Tensor, params: SamplingParams, generator: torch.Generator) -> int:
    """Draw one token from logits (vocabulary,) float32, with one uniform number of `generator`.

    `params.temperature` must be above 0. The uniform number selects a token from the cumulative distribution, so
    logits that differ in the last bits nearly always give the same token.
    """
    # the maximum is subtracted first, so a tiny temperature cannot overflow
    probabilities = ((logits - logits.max()) / params.temperature).softmax(-1)
    point = torch.rand((), generator=generator, dtype=torch.double)
    if params.top_p == 1:
        return _pick(probabilities.double().cumsum(0), point)
    values, tokens = probabilities.topk(min(_NUCLEUS_GUESS, len(probabilities)))  # descending
    reached = values.double().cumsum(0)
    if reached[-1] < params.top_p:
        values, tokens = probabilities.sort(descending=True)
        reached = values.double().cumsum(0)
    kept = int((reached < params.top_p).sum()) + 1  # the token that reaches top_p is in the nucleus
    return int(tokens[_pick(reached[:kept], point)])


def _pick(reached: Tensor, point: Tensor) -> int:
    """First index whose cumulative probability exceeds `point` times the total."""
    index = int(torch.searchsorted(reached, point * reached[-1], right=True))
    return min(index, len(reached) - 1)


def log_probabilities(logits: Tensor, token: int, count: int) -> tuple[float, tuple[tuple[int, float], ...]]:
    """Natural log probability of `token`, and (token, log probability) of the `count` likeliest tokens.

    From logits (vocabulary,), before temperature and top-p.
    """
    logs = logits.log_softmax(-1)
    best = logs.topk(count)
    pairs = tuple((int(t), float(v)) for t, v in zip(best.indices, best.values, strict=True))
    return float(logs[token]), pairs
