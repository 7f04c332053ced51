"""`python -m training words`: fits the scorer of the words in a request that answers are likely to have.

    python -m training words tasks=none families=families/train 'hidden_families=[markup, votes]'

Every word of training wordings and of example lines is a case: how many of the task's answers begin with it, and how
many go on with it? A small network learns that from the states of the text encoder around the word. It takes minutes
and no pass through the base, of which only the vocabulary is read. `fit answer_words=FILE` trains a generator with it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from llgbm.conditioning.answer_words import (
    StatesEncoder,
    Vocabulary,
    Words,
    WordScorer,
    metric_of,
    spellings,
    words_of,
)
from llgbm.conditioning.encoder_lora import EncoderLoRA, lora_digest
from llgbm.conditioning.vocabulary import BaseVocabulary
from llgbm.errors import CheckpointError, ConfigError
from llgbm.files.synced import replace_file
from llgbm.pretrained.find import BASE_0_5B, TEXT_ENCODER, resolve_pretrained
from llgbm.prompting import example_lines
from llgbm.text_encoder import PretrainedTextEncoder
from training.runs.log import RunLog
from training.runs.results import write_result
from training.tasks.families import load_families
from training.tasks.format import Task, tasks_digest
from training.tasks.training_set import TrainingTasks

SCORER_FILE = "answer_words.safetensors"
_FITTED_TO, _PLAIN = "encoder_lora", "none"
"""Key of the file's metadata, and its value for a text encoder without a LoRA."""
_WORDINGS, _LINES = 2, 1
"""Texts of each task."""
_LONGEST = 60
"""Tokens of an answer that count."""
_WIDTH = 256
_BATCH = 1024
_LEAST_SPREAD = 0.1
"""Added to a feature's standard deviation, so that rare features do not become huge."""


@dataclass(frozen=True)
class Config(TrainingTasks):
    """Settings of fitting the scorer."""

    workdir: Path = Path("runs/words")
    """Folder of the log and of the scorer, `answer_words.safetensors`."""
    base: str = BASE_0_5B
    """Hub id or folder of the base, for its vocabulary."""
    text_encoder: str = TEXT_ENCODER
    """Hub id or folder of the text encoder."""
    encoder_lora: Path | None = None
    """LoRA of the text encoder, a file of the command `encoder`, as for `fit`."""
    heldout_families: Path | None = None
    """Folder of family files to measure on; none measures nothing."""
    steps: int = 2500
    """Number of optimiser steps of 1,024 words."""
    learning_rate: float = 2e-3
    """First learning rate of AdamW; it falls to 0."""
    seed: int = 0
    """Seed of the texts and of the batches."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.learning_rate <= 0:
            raise ConfigError("steps must be at least 1, and learning_rate positive")


class Cases(NamedTuple):
    """Words to learn from, n of them."""

    features: Tensor
    """(n, features) float16."""
    shares: Tensor
    """(n, slots, spellings) float32: the share of the task's other answers with the token."""


def run(config: Config) -> None:
    """Fit the scorer, write `{workdir}/answer_words.safetensors`, and measure on held-out families.

    Raises:
        ConfigError: there is no task with a wording.
        TaskFormatError: a folder, a task, a family or the file of wordings is invalid.
        AdapterFormatError, AdapterMismatchError: `encoder_lora` is another file, or for another text encoder.
    """
    tasks = config.training_set().all
    heldout = load_families(config.heldout_families) if config.heldout_families else []
    lora = EncoderLoRA.load(config.encoder_lora) if config.encoder_lora else None
    encoder = PretrainedTextEncoder(config.text_encoder, lora=lora).load()
    vocabulary = BaseVocabulary(resolve_pretrained(config.base))
    path = config.workdir / SCORER_FILE
    with RunLog(config.workdir, "words", config) as log:
        rng = np.random.default_rng(config.seed)
        with log.progress("reading", total=len(tasks)) as progress:
            cases = cases_of(tasks, encoder, vocabulary, rng, progress.update)
        with log.progress("words", total=config.steps) as progress:

            def on_step(step: int, loss: float) -> None:
                log.metrics(series="", step=step, loss=loss)
                progress.update(step + 1, f"loss {loss:.4f}")

            scorer = fit_scorer(cases, metric_of(vocabulary.all_readers()), config, on_step)
        save_scorer(path, scorer, lora_digest(lora))
        digest = tasks_digest(tasks)
        log.record_artefact(path, kind="word_scorer", data_digest=digest, digest=scorer.digest)
        found = first_word_found(scorer, encoder, vocabulary, heldout)
        result = {"scorer": scorer.digest, "heldout_tasks": len(heldout), "first_token_found": found}
        write_result(log, "words", config, result, data_digest=digest)


def cases_of(
    tasks: Sequence[Task],
    encoder: StatesEncoder,
    vocabulary: Vocabulary,
    rng: np.random.Generator,
    on_task: Callable[[int], None] = lambda _: None,
) -> Cases:
    """The words of some seen wordings and training rows of each task.

    Raises:
        ConfigError: there is none.
    """
    features, shares = [], []
    for number, task in enumerate(tasks):
        answers = [vocabulary.encode(row.output)[:_LONGEST] for row in task.train]
        wordings = [str(w) for w in rng.permutation(np.array(task.seen_descriptions, dtype=object))[:_WORDINGS]]
        rows = [int(i) for i in rng.permutation(len(task.train))[:_LINES]]
        lines = list(example_lines([(task.train[i].input, task.train[i].output) for i in rows]))
        owners = [*([None] * len(wordings)), *rows]
        for words, owner in zip(words_of([*wordings, *lines], encoder), owners, strict=True):
            others = [answer for i, answer in enumerate(answers) if i != owner]
            if words.texts and others:
                features.append(words.features.half())
                shares.append(_shares(words, others, vocabulary))
        on_task(number + 1)
    if not features:
        raise ConfigError("no task has a wording to train on; name a folder of tasks or of families")
    return Cases(torch.cat(features), torch.cat(shares))


def _shares(words: Words, answers: Sequence[Sequence[int]], vocabulary: Vocabulary) -> Tensor:
    """(words, slots, spellings): the share of these answers that begin, or go on, with the token of a spelling."""
    first = Counter(answer[0] for answer in answers if answer)
    later = Counter(token for answer in answers for token in set(answer[1:]))
    found = [
        [[counts[token] for token in tokens] for counts, tokens in zip((first, later), spelt, strict=True)]
        for spelt in (spellings(word, vocabulary) for word in words.texts)
    ]
    return torch.tensor(found, dtype=torch.float32) / len(answers)


def fit_scorer(cases: Cases, metric: Tensor, config: Config, on_step: Callable[[int, float], None]) -> WordScorer:
    """Logistic regression of the shares, with one hidden layer.

    Args:
        metric: see `llgbm.conditioning.answer_words.metric_of`.
    """
    size, outputs = cases.features.shape[1], cases.shares[0].numel()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        inner, outer = nn.Linear(size, _WIDTH), nn.Linear(_WIDTH, outputs)
        outer.bias.data.fill_(-4.0)  # most words are in no answer
        some = cases.features[torch.randperm(len(cases.features))[:50_000]].float()
        mean, spread = some.mean(0), some.std(0) + _LEAST_SPREAD
        optimiser = torch.optim.AdamW([*inner.parameters(), *outer.parameters()], weight_decay=0.02)
        for step in range(config.steps):
            for group in optimiser.param_groups:
                group["lr"] = config.learning_rate * (1 - step / config.steps)
            chosen = torch.randint(len(cases.features), (_BATCH,))
            x = (cases.features[chosen].float() - mean) / spread
            logits = outer(nn.functional.gelu(inner(x)))
            wanted = cases.shares[chosen].flatten(1)
            loss = nn.functional.binary_cross_entropy_with_logits(logits, wanted)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            on_step(step, float(loss.detach()))
    parameters = [p.detach() for p in (inner.weight, inner.bias, outer.weight, outer.bias)]
    # as stored, so that the generator is trained with the scorer that it ships with
    return WordScorer(*(t.half().float() for t in (mean, spread, *parameters, metric)))


def first_word_found(
    scorer: WordScorer, encoder: StatesEncoder, vocabulary: Vocabulary, tasks: Sequence[Task]
) -> dict[str, float]:
    """Of tasks with answers that begin with a word of the first unseen wording: how often the likeliest one does.

    Returns:
        `possible`, the fraction of such tasks, and `found`, the fraction of these; empty without tasks.
    """
    possible = found = 0
    for task in tasks:
        first = {vocabulary.encode(row.output)[0] for row in task.test}
        (words,) = words_of(task.unseen_descriptions[:1], encoder)
        if not words.texts:
            continue
        tokens = torch.tensor([spellings(word, vocabulary)[0] for word in words.texts])  # (words, spellings)
        right = torch.tensor([[int(token) in first for token in word] for word in tokens.tolist()])
        possible += bool(right.any())
        found += bool(right.flatten()[scorer(words.features)[:, 0].argmax()])
    if not possible:
        return {}
    return {"possible": round(possible / len(tasks), 4), "found": round(found / possible, 4)}


def save_scorer(path: Path, scorer: WordScorer, encoder_lora: str | None) -> None:
    """Write a safetensors file, atomically.

    Args:
        encoder_lora: digest of the LoRA of the text encoder that the scorer was fitted to; None for none.
    """
    tensors = {name: tensor.half().contiguous() for name, tensor in scorer.tensors().items()}
    replace_file(path, save_tensors(tensors, metadata={_FITTED_TO: encoder_lora or _PLAIN}))


def load_scorer(path: Path, encoder_lora: str | None) -> WordScorer:
    """Read the file of `save_scorer`.

    Raises:
        CheckpointError: the file cannot be read, is another one, or was fitted to another LoRA of the text encoder.
    """
    try:
        scorer = WordScorer.from_tensors(load_tensors(path.read_bytes()))
        with safe_open(path, "pt") as file:
            fitted_to = (file.metadata() or {}).get(_FITTED_TO)
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read: {error.strerror}; name the file of `python -m training words`"
        ) from error
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a scorer of answer words: {error}") from error
    if fitted_to != (encoder_lora or _PLAIN):
        raise CheckpointError(
            f"{path} was fitted to another text encoder (LoRA {str(fitted_to)[:12]}) than this one (LoRA "
            f"{(encoder_lora or _PLAIN)[:12]}): give `words` and `fit` the same encoder_lora"
        )
    return scorer
