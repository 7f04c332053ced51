"""Scores of adapters on rows: exact match under greedy decoding, and length-normalised log-likelihood.

Greedy exact match needs no decoding loop: greedy decoding gives an answer if and only if, under teacher forcing, the
argmax is right at every answer position, end token included. A row is correct if any accepted answer is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llgbm.base import Base
from llgbm.errors import ConfigError
from llgbm.fitting.task_losses import label_logits
from llgbm.functional import FunctionalLoRA
from llgbm.lora import LoRAWeights
from llgbm.packed.batch import PackedBatch, Row, pack


@dataclass(frozen=True)
class EvalRow:
    """A prompt and its accepted answers, the reference first; token ids, end token included.

    Raises:
        ConfigError: no answer, or an empty one, which would always count as correct.
    """

    prompt: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if not self.answers or not all(self.answers):
            raise ConfigError("a row needs an answer, and every answer a token, such as the end token")


@dataclass(frozen=True)
class RowScore:
    """Score of one row.

    Attributes:
        correct: greedy decoding gives an accepted answer.
        log_likelihood: of the reference, mean over its tokens, in nats.
    """

    correct: bool
    log_likelihood: float


def score_rows(
    base: Base,
    groups: Sequence[tuple[LoRAWeights | None, Sequence[EvalRow]]],
    *,
    max_tokens: int = 1024,
) -> list[list[RowScore]]:
    """Score groups of rows, each group with its own adapter (None: the plain base).

    Args:
        max_tokens: approximate number of tokens in one forward pass.

    Returns:
        The scores of each group's rows, in order.

    Raises:
        AdapterMismatchError: an adapter does not fit the base, or a prompt is empty.
    """
    functional = FunctionalLoRA(base.model)
    results: list[list[RowScore]] = [[RowScore(False, float("nan"))] * len(rows) for _, rows in groups]
    with torch.inference_mode():
        for chunk in _chunks(groups, max_tokens):
            rows = [[Row(row.prompt, answer) for _, row, answer in members] for _, members in chunk]
            packed = pack(rows).on(base.device)
            logits = label_logits(base, functional, packed, [groups[g][0] for g, _ in chunk])
            right, mean_log = _score(logits, packed)
            flat = [(g, index, row, answer) for g, members in chunk for index, row, answer in members]
            for place, (g, index, row, answer) in enumerate(flat):
                before = results[g][index]
                is_reference = answer == row.answers[0]
                results[g][index] = RowScore(
                    before.correct or bool(right[place]),
                    float(mean_log[place]) if is_reference else before.log_likelihood,
                )
    return results


def compute_accuracy_with_lora(base: Base, weights: LoRAWeights | None, rows: Sequence[EvalRow]) -> float:
    """Share of `rows` that greedy decoding answers correctly with the adapter; NaN without rows.

    Args:
        weights: the adapter; None for the plain base.
    """
    scores = score_rows(base, [(weights, rows)])[0]
    return sum(s.correct for s in scores) / len(scores) if scores else float("nan")


def paired_bootstrap(
    difference: Sequence[Sequence[float]], *, samples: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """Macro mean and 95 % interval of paired row differences, resampling tasks and then rows within them.

    Args:
        difference: for each task, one number per row (a score, or a difference of two scores on the same row).

    Returns:
        (mean, low, high), all NaN without rows. Tasks without rows do not count. Percentile interval of a two-stage
        bootstrap (Efron and Tibshirani 1993), deterministic for a given seed.
    """
    rng = np.random.default_rng(seed)
    tasks = [np.asarray(d, dtype=np.float64) for d in difference if len(d)]
    if not tasks:
        return float("nan"), float("nan"), float("nan")
    means: NDArray[np.float64] = np.empty(samples)
    for i in range(samples):
        # with replacement: first tasks, then the rows of each chosen task; every task has the same weight
        chosen = rng.integers(len(tasks), size=len(tasks))
        means[i] = np.mean([tasks[t][rng.integers(len(tasks[t]), size=len(tasks[t]))].mean() for t in chosen])
    low, high = np.percentile(means, [2.5, 97.5])
    return float(np.mean([t.mean() for t in tasks])), float(low), float(high)


_Member = tuple[int, EvalRow, tuple[int, ...]]


def _chunks(
    groups: Sequence[tuple[LoRAWeights | None, Sequence[EvalRow]]], max_tokens: int
) -> Iterator[list[tuple[int, list[_Member]]]]:
    """Batches of (group number, members) of about `max_tokens` tokens; rows of a group stay together where they fit."""
    chunk: list[tuple[int, list[_Member]]] = []
    size = 0
    for number, (_, rows) in enumerate(groups):
        members: list[_Member] = []
        for index, row in enumerate(rows):
            for answer in dict.fromkeys(row.answers):
                size += len(row.prompt) + len(answer)
                members.append((index, row, answer))
                if size >= max_tokens:
                    yield [*chunk, (number, members)]
                    chunk, members, size = [], [], 0
        if members:
            chunk.append((number, members))
    if chunk:
        yield chunk


def _score(logits: Tensor, packed: PackedBatch) -> tuple[Tensor, Tensor]:
    """From logits (L, vocabulary): per row, whether every argmax is right, and the mean log-probability of its labels.

    Both are (rows,).
    """
    rows = len(packed.last_index)
    wrong = (logits.argmax(-1) != packed.labels).float()  # (L,)
    log = logits.log_softmax(-1).gather(1, packed.labels[:, None])[:, 0]  # (L,)
    # labels lie row by row in one flat list: sums per row by index_add over each label's row
    zeros = log.new_zeros(rows)
    counts = zeros.index_add(0, packed.label_row, torch.ones_like(log))
    return zeros.index_add(0, packed.label_row, wrong) == 0, zeros.index_add(0, packed.label_row, log) / counts
