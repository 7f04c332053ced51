"""AnswerWords: the words of a request that answers are likely to have, as directions of the base's last hidden state.

A sentence vector cannot carry the names of labels that no training task had. The request has them: "billing or
delivery?". `WordScorer` reads every word of a text with the token states of the text encoder around it, and gives the
probability that answers begin with it and that they go on with it. The directions raise the logits of these words'
tokens; the generator decides where and by how much (`llgbm.generator`).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import chain
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from llgbm.conditioning.embedding_cache import EmbeddingCache, rows_through_cache, text_key
from llgbm.conditioning.sentence_model import TokenStates
from llgbm.config import WORD_SLOTS
from llgbm.errors import CheckpointError, ConfigError
from llgbm.files.parameters import values_digest

WORD = re.compile(r"\w+|[^\w\s]")
"""A word of a text: letters and digits, or one other sign."""
NUM_FEATURES = 13
"""Features of a word besides its token states, see `_features`."""
_SPELLINGS = 3
ARROW = " -> "
"""Between input and answer of an example, see `llgbm.prompting.example_lines`."""
_LEAST = (0.02, 0.05)
"""Probability, by slot, from which on a word is raised: its logit gets log(1 + p / least)."""
_NAMES = ("mean", "spread", "w1", "b1", "w2", "b2", "metric")


class StatesEncoder(Protocol):
    """Interface of a text encoder that gives the states of single tokens."""

    def states(self, texts: Sequence[str]) -> list[TokenStates]:
        """The states of each text's tokens."""
        ...


class Vocabulary(Protocol):
    """Interface of a base's tokens, such as `llgbm.conditioning.vocabulary.BaseVocabulary`."""

    def __hash__(self) -> int:
        """Of a key of `spellings`."""
        ...

    @property
    def revision(self) -> str:
        """Identifies the base's weights."""
        ...

    def encode(self, text: str) -> list[int]:
        """Token ids, without special tokens."""
        ...

    def readers(self, ids: Sequence[int]) -> Tensor:
        """(n, hidden) float32: a token's logit is the product of its row with the normalised last hidden state."""
        ...


@dataclass(frozen=True, eq=False)
class WordScorer:
    """A small network on the features of a word, and the metric of the directions; part of a generator's artefact.

    Attributes:
        mean, spread: (features,), of the features in training.
        w1, b1, w2, b2: of a hidden layer with GELU, (width, features), and of the outputs (slots spellings, width).
        metric: (hidden, hidden), the inverse of the covariance of the vocabulary's readers.

    Raises:
        CheckpointError: a value is not finite.
    """

    mean: Tensor
    spread: Tensor
    w1: Tensor
    b1: Tensor
    w2: Tensor
    b2: Tensor
    metric: Tensor

    def __post_init__(self) -> None:
        if not all(bool(torch.isfinite(tensor).all()) for tensor in self.tensors().values()):
            raise CheckpointError("the scorer of answer words has values that are not finite; fit it again")

    def tensors(self) -> dict[str, Tensor]:
        """The parameters by name, for a file."""
        return {name: getattr(self, name) for name in _NAMES}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> WordScorer:
        """Inverse of `tensors`, in float32; raises CheckpointError for other names."""
        if set(tensors) != set(_NAMES):
            raise CheckpointError(f"a scorer of answer words has {', '.join(_NAMES)}, not {', '.join(sorted(tensors))}")
        return cls(**{name: tensor.float() for name, tensor in tensors.items()})

    def require_sizes(self, encoder: int, base: int) -> None:
        """Refuse a text encoder with other states than (tokens, encoder), and a base of another hidden size.

        Raises:
            ConfigError: says for which sizes the scorer was fitted.
        """
        found = len(self.mean) - NUM_FEATURES, len(self.metric)
        if found != (encoder, base):
            raise ConfigError(
                f"the scorer of answer words is for a text encoder of size {found[0]} and a base of hidden size "
                f"{found[1]}, not for {encoder} and {base}; fit one for them with `python -m training words`"
            )

    @cached_property
    def digest(self) -> str:
        """sha256 of the parameters in float16, as they are stored."""
        return values_digest(self.tensors(), "<f2")

    def __call__(self, features: Tensor) -> Tensor:
        """Probabilities (n, slots, spellings) of words with these features (n, features)."""
        hidden = torch.nn.functional.gelu((features - self.mean) / self.spread @ self.w1.T + self.b1)
        probabilities: Tensor = (hidden @ self.w2.T + self.b2).sigmoid().unflatten(1, (WORD_SLOTS, _SPELLINGS))
        return probabilities

    def directions(self, readers: Tensor) -> Tensor:
        """For readers (n, hidden) the directions that raise their own logit by 1 and the others' by little."""
        raw = readers @ self.metric
        return raw / (raw * readers).sum(-1, keepdim=True)


def scorer_digest(scorer: WordScorer | None) -> str | None:
    """The digest of a scorer; None for none."""
    return None if scorer is None else scorer.digest


def metric_of(readers: Tensor) -> Tensor:
    """The metric in which all tokens are equally far from each other: (C + l I)^-1 of C, the readers' covariance.

    Args:
        readers: (vocabulary, hidden) float32.

    Returns:
        (hidden, hidden). l is the median of the eigenvalues; without it rare tokens would decide.
    """
    covariance = readers.T @ readers / len(readers)
    ridge = torch.linalg.eigvalsh(covariance).median()
    inverse: Tensor = torch.linalg.inv(covariance + ridge * torch.eye(len(covariance)))
    return inverse


class AnswerWords:
    """Texts -> directions (2, hidden) each: of the tokens that answers begin with, and of those they go on with.

    Args:
        scorer: of the generator.
        encoder: of the generator.
        vocabulary: of the generator's base.
        cache: keeps directions between calls; None computes them every time.
        encoder_key: identifies the encoder in the cache.
    """

    def __init__(
        self,
        scorer: WordScorer,
        encoder: StatesEncoder,
        vocabulary: Vocabulary,
        *,
        cache: EmbeddingCache | None = None,
        encoder_key: str = "",
    ) -> None:
        self._scorer, self._encoder, self._vocabulary, self._cache = scorer, encoder, vocabulary, cache
        content = f"words\0{encoder_key}\0{scorer.digest}\0{vocabulary.revision}"
        # the prefix of all embeddings, for Redis users that may write no other keys
        self._key_prefix = f"llgbm:embedding:{hashlib.sha256(content.encode()).hexdigest()[:32]}:"

    @property
    def size(self) -> int:
        """Length of a text's row."""
        return WORD_SLOTS * len(self._scorer.metric)

    def encode(self, texts: Sequence[str]) -> Tensor:
        """(n, 2 hidden) float32, float16 values; zeros for a text without words.

        Raises:
            PretrainedNotFoundError, AdapterMismatchError: as `PretrainedTextEncoder.load`, for a text not in the cache.
            EmbeddingCacheError: the cache failed.
        """
        rows = rows_through_cache(
            texts, self._cache, key=self._key, read=self._row, compute=self._compute, stored_as="<f2"
        )
        return torch.stack(rows).float() if rows else torch.zeros(0, self.size)

    def _key(self, text: str) -> str:
        return text_key(self._key_prefix, text)

    def _row(self, value: bytes) -> Tensor | None:
        """A cached row; None for an invalid value."""
        if len(value) != 2 * self.size:
            return None
        row = torch.frombuffer(bytearray(value), dtype=torch.float16)
        return row if bool(torch.isfinite(row).all()) else None

    @torch.no_grad()
    def _compute(self, texts: Sequence[str]) -> Tensor:
        """(n, 2 hidden) float16, as stored, so that a cached row is equal to a computed one."""
        found = words_of(texts, self._encoder)
        spelt = [[spellings(word, self._vocabulary) for word in words.texts] for words in found]
        ids = sorted({i for ids in spelt for i in chain.from_iterable(chain.from_iterable(ids))})
        place = {token: i for i, token in enumerate(ids)}
        directions = self._scorer.directions(self._vocabulary.readers(ids)) if ids else torch.zeros(0, self.size // 2)
        rows = torch.zeros(len(texts), WORD_SLOTS, self.size // 2)
        for i, (words, tokens) in enumerate(zip(found, spelt, strict=True)):
            if not words.texts:
                continue
            probability = self._scorer(words.features)  # (words, slots, spellings)
            for slot in range(WORD_SLOTS):
                best: dict[int, float] = {}  # a token that several words have counts once
                for token, p in zip(
                    (t for word in tokens for t in word[slot]), probability[:, slot].flatten().tolist(), strict=True
                ):
                    best[token] = max(best.get(token, 0.0), p)
                gain = torch.tensor(list(best.values())).div(_LEAST[slot]).log1p()
                rows[i, slot] = gain @ directions[[place[token] for token in best]]
        return rows.flatten(1).half()


@dataclass(frozen=True, eq=False)
class Words:
    """The words of a text.

    Attributes:
        texts: as they are in the text.
        features: (n, hidden + `NUM_FEATURES`) float32: the mean state of a word's tokens, and `_features`.
    """

    texts: Sequence[str]
    features: Tensor


def words_of(texts: Sequence[str], encoder: StatesEncoder) -> list[Words]:
    """The words of each text that are within the encoder's limit."""
    return [_words(text, *found) for text, found in zip(texts, encoder.states(texts), strict=True)]


def _words(text: str, places: Tensor, states: Tensor) -> Words:
    """The words of one text, from the places (tokens, 2) and the states (tokens, hidden) of its tokens."""
    begins, ends = places[:, 0].numpy(), places[:, 1].numpy()
    arrow = text.rfind(ARROW)
    words: list[str] = []
    rows: list[Tensor] = []
    features: list[list[float]] = []
    for match in WORD.finditer(text):
        # tokens are in order, so those of a word are neighbours
        first, stop = np.searchsorted(ends, match.start(), "right"), np.searchsorted(begins, match.end(), "left")
        if first >= stop:
            continue  # beyond the encoder's limit
        features.append(_features(text, match, arrow, len(words)))
        words.append(match.group())
        rows.append(states[first:stop].mean(0))
    if not words:
        return Words((), torch.zeros(0, states.shape[-1] + NUM_FEATURES))
    return Words(words, torch.cat([torch.stack(rows), torch.tensor(features, dtype=torch.float32)], 1))


def _features(text: str, match: re.Match[str], arrow: int, place: int) -> list[float]:
    """Where a word stands: in a description or in an example, in its answer, in quotes, and how it is written."""
    word, start, end = match.group(), match.start(), match.end()
    answer = arrow >= 0 and start >= arrow + len(ARROW)
    return [
        arrow >= 0,
        answer,
        answer and start == arrow + len(ARROW),
        start > 0 and text[start - 1] in "\"'`“‘(",
        end < len(text) and text[end] in "\"'`”’,",
        word.isalnum(),
        word[:1].isupper(),
        word.isupper(),
        word.isdigit(),
        answer and word.lower() in text[:arrow].lower(),
        len(word) / 10,
        min(place, 40) / 40,
        not word[0].isalnum(),
    ]


@lru_cache(maxsize=50_000)
def spellings(word: str, vocabulary: Vocabulary) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Tokens of a word: that an answer begins with, spelt in three ways, and three of those it may go on with."""
    first = tuple(vocabulary.encode(w)[0] for w in (word, word.lower(), word[:1].upper() + word[1:]))
    whole = vocabulary.encode(word)
    return first, (vocabulary.encode(" " + word)[0], whole[0], whole[-1])
