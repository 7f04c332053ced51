"""The vocabulary of a base, from its folder: tokens and single rows of the output layer, without loading the base."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from llgbm.errors import PretrainedNotFoundError
from llgbm.pretrained.find import pretrained_revision

_INDEX_FILE, _SINGLE_FILE = "model.safetensors.index.json", "model.safetensors"
_HEADS = ("lm_head.weight", "model.embed_tokens.weight")
"""The output layer, or the embeddings if the base has one matrix for both."""
_NORM = "model.norm.weight"


class BaseVocabulary:
    """Tokens of the base in `folder`.

    Args:
        tokenizer: the base's `tokenizers.Tokenizer`, where it is in memory; None reads it, which takes 90 MB.

    Raises:
        PretrainedNotFoundError: on first use, if the folder has no output layer.
    """

    def __init__(self, folder: Path, tokenizer: Any = None) -> None:
        self._folder = folder
        if tokenizer is not None:
            self._tokenizer = tokenizer

    @cached_property
    def revision(self) -> str:
        """Identifies the base's weights."""
        return pretrained_revision(self._folder)

    def encode(self, text: str) -> list[int]:
        """Token ids, without special tokens."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def readers(self, ids: Sequence[int]) -> Tensor:
        """(n, hidden) float32: a token's logit is the product of its row with the normalised last hidden state."""
        return torch.cat([self._head[i : i + 1] for i in ids]).float() * self._norm

    def all_readers(self) -> Tensor:
        """(vocabulary, hidden) float32, of all tokens."""
        whole: Tensor = self._head[:]
        return whole.float() * self._norm

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self._folder).backend_tokenizer

    @cached_property
    def _head(self) -> Any:
        """The output layer in its file: a slice of it reads only these rows."""
        files = self._files
        name = next((name for name in _HEADS if name in files), None)
        if name is None:
            raise PretrainedNotFoundError(f"{self._folder} has no {' and no '.join(_HEADS)}: it is not a causal LM")
        file: Any = safe_open(files[name], "pt")
        return file.get_slice(name)

    @cached_property
    def _norm(self) -> Tensor:
        file: Any = safe_open(self._files[_NORM], "pt")
        norm: Tensor = file.get_tensor(_NORM)
        return norm.float()

    @cached_property
    def _files(self) -> dict[str, Path]:
        """The file of each tensor."""
        if (index := self._folder / _INDEX_FILE).is_file():
            places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            return {name: self._folder / file for name, file in places.items()}
        single = self._folder / _SINGLE_FILE
        if not single.is_file():
            raise PretrainedNotFoundError(
                f"{self._folder} has no {_SINGLE_FILE} and no {_INDEX_FILE}: no base is there"
            )
        with safe_open(single, "pt") as file:
            return dict.fromkeys(file.keys(), single)
