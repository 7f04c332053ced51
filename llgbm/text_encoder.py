"""The frozen text encoder: texts -> L2-normalised vectors, with a cache.

A sentence-transformers model in eval mode, on the CPU, in float32. A text's vector does not depend on the other texts
of a call, to 1e-6. Cached texts do not load the model.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from llgbm.conditioning.answer_words import AnswerWords, Vocabulary, WordScorer
from llgbm.conditioning.embedding_cache import (
    EmbeddingCache,
    MemoryEmbeddingCache,
    SqliteEmbeddingCache,
    rows_through_cache,
    text_key,
)
from llgbm.conditioning.encoder_lora import EncoderLoRA, lora_digest
from llgbm.conditioning.sentence_model import POOLING_FILE, SentenceModel, TokenStates
from llgbm.conditioning.vocabulary import BaseVocabulary
from llgbm.pretrained.find import TEXT_ENCODER, pretrained_revision, resolve_pretrained

__all__ = [
    "EmbeddingCache",
    "MemoryEmbeddingCache",
    "PretrainedTextEncoder",
    "SqliteEmbeddingCache",
    "answer_words",
]

_RECIPE_FILES = ("modules.json", POOLING_FILE, "sentence_bert_config.json")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt")
_NUMBER_BYTES = 4
_UNIT_TOLERANCE = 1e-3


_MOST_KEPT = 64
"""Texts of one call whose states are kept until the next: those of tens of thousands would take a gigabyte."""


class PretrainedTextEncoder:
    """Encodes texts with a frozen sentence-transformers model.

    The model is read or fetched on first use, or by `load`.

    Args:
        name_or_path: a hub id, or a sentence-transformers folder.
        cache: keeps vectors between calls; None computes every text.
        lora: is merged into the model's weights; None for the plain model. `Checkpoint.text_encoder` has a generator's.
    """

    def __init__(
        self,
        name_or_path: str | Path = TEXT_ENCODER,
        *,
        cache: EmbeddingCache | None = None,
        lora: EncoderLoRA | None = None,
    ) -> None:
        self._name_or_path = name_or_path
        self._cache = cache
        self._lora = lora
        self._model: SentenceModel | None = None
        self._lock = threading.Lock()
        self._last: dict[str, TokenStates] = {}

    @property
    def encoder_id(self) -> str:
        """The encoder's name in checkpoints."""
        return str(self._name_or_path)

    @property
    def lora_digest(self) -> str | None:
        """Digest of the LoRA; None for the plain model."""
        return lora_digest(self._lora)

    @cached_property
    def dim(self) -> int:
        """Length of a vector; 384 for all-MiniLM-L6-v2."""
        return int(json.loads((self._folder / "config.json").read_text(encoding="utf-8"))["hidden_size"])

    @property
    def loaded(self) -> bool:
        """Whether the model is in memory."""
        return self._model is not None

    def load(self) -> PretrainedTextEncoder:
        """Load the model into memory, once; returns itself.

        Raises:
            PretrainedNotFoundError: no source has the weights, or they are not a sentence-transformers model.
            AdapterMismatchError: the LoRA is for another model.
        """
        with self._lock:
            self._loaded_model()
        return self

    def encode(self, texts: Sequence[str]) -> Tensor:
        """(n, dim) float32, rows of length 1, no gradient; texts beyond the model's limit are cut at the end.

        Raises:
            PretrainedNotFoundError, AdapterMismatchError: as `load`, when a text is not in the cache.
            EmbeddingCacheError: the cache failed.
        """
        rows = rows_through_cache(
            texts, self._cache, key=self._key, read=self._vector, compute=self._compute, stored_as="<f4"
        )
        return torch.stack(rows) if rows else torch.zeros(0, self.dim)

    def states(self, texts: Sequence[str]) -> list[TokenStates]:
        """The states of each text's tokens. They are not cached, but those of the last short `encode` are still there.

        Raises:
            PretrainedNotFoundError, AdapterMismatchError: as `load`.
        """
        with self._lock:
            known = self._last
            missing = [text for text in dict.fromkeys(texts) if text not in known]
            fresh = dict(zip(missing, self._loaded_model().read(missing)[1], strict=True)) if missing else {}
        return [known[text] if text in known else fresh[text] for text in texts]

    @property
    def cache(self) -> EmbeddingCache | None:
        """The cache of this encoder, for others who read texts with it."""
        return self._cache

    @cached_property
    def _folder(self) -> Path:
        return resolve_pretrained(self._name_or_path)

    @cached_property
    def key_prefix(self) -> str:
        """Identifies everything that a vector depends on, except the text; begins a cache's keys."""
        digest = hashlib.sha256(f"{self.encoder_id}\0{pretrained_revision(self._folder)}\0l2\0".encode())
        for name in (*_RECIPE_FILES, *_TOKENIZER_FILES):
            if (self._folder / name).is_file():
                digest.update((self._folder / name).read_bytes())
            digest.update(b"\0")
        if self.lora_digest is not None:
            digest.update(self.lora_digest.encode())
        return f"llgbm:embedding:{digest.hexdigest()[:32]}:"

    def _key(self, text: str) -> str:
        return text_key(self.key_prefix, text)

    def _vector(self, value: bytes) -> Tensor | None:
        """A cached vector; None for an invalid value."""
        if len(value) != _NUMBER_BYTES * self.dim:
            return None
        vector = torch.frombuffer(bytearray(value), dtype=torch.float32)
        # a NaN fails the comparison, so it counts as invalid
        return vector if abs(float(vector.norm()) - 1) < _UNIT_TOLERANCE else None

    def _compute(self, texts: list[str]) -> Tensor:
        # one thread at a time: the tokenizer's padding settings are its state
        with self._lock:
            if len(texts) > _MOST_KEPT:
                pooled, self._last = self._loaded_model()(texts), {}
            else:
                pooled, states = self._loaded_model().read(texts)
                self._last = dict(zip(texts, states, strict=True))
        return F.normalize(pooled, dim=-1)

    def _loaded_model(self) -> SentenceModel:
        if self._model is None:
            self._model = SentenceModel(self._folder, self._lora)
        return self._model.eval()


def answer_words(
    scorer: WordScorer | None, encoder: PretrainedTextEncoder, base: str | Path | Vocabulary
) -> AnswerWords | None:
    """The reader of answer words with this scorer; None for none.

    Args:
        encoder: its cache also keeps the answer words.
        base: a source of the base whose vocabulary is read, or the vocabulary.

    Raises:
        PretrainedNotFoundError: no source has the base.
    """
    if scorer is None:
        return None
    vocabulary = BaseVocabulary(resolve_pretrained(base)) if isinstance(base, (str, Path)) else base
    return AnswerWords(scorer, encoder, vocabulary, cache=encoder.cache, encoder_key=encoder.key_prefix)
