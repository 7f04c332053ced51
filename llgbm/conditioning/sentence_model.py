"""A sentence-transformers folder as a module: tokenizer, transformer and pooling, without that package.

Importing the package takes a second and 50 MB, most of it for training and evaluation. Only what sentence encoders
usually have is read: one transformer, pooling by mean, cls or max, and normalisation. Anything else is refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from llgbm.conditioning.encoder_lora import EncoderLoRA
from llgbm.errors import PretrainedNotFoundError
from llgbm.linears.frozen_linear import linears_of
from llgbm.pretrained.find import TEXT_ENCODER, no_progress_bars, pretrained_revision

POOLING_FILE = "1_Pooling/config.json"
"""Where sentence-transformers keeps the kind of pooling."""
_MODULES = ("Transformer", "Pooling", "Normalize")
_BATCH_SIZE = 32


class TokenStates(NamedTuple):
    """The tokens of a text.

    Attributes:
        places: (tokens, 2) int64, first character and the one after the last.
        states: (tokens, hidden) float32, last hidden states.
    """

    places: Tensor
    states: Tensor


class SentenceModel(nn.Module):
    """Texts -> pooled hidden states; in eval mode, in float32, and without gradients.

    Args:
        folder: of a sentence-transformers model.
        lora: is merged into its weights.

    Attributes:
        max_tokens: longer texts are cut at the end.

    Raises:
        PretrainedNotFoundError: `folder` is not a sentence-transformers model, or one with other parts.
        AdapterMismatchError: `lora` is for another model.
    """

    def __init__(self, folder: Path, lora: EncoderLoRA | None = None) -> None:
        super().__init__()
        self._pool = _POOLING[_pooling(folder)]
        from transformers import AutoModel, AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        with no_progress_bars():
            self._transformer: Any = AutoModel.from_pretrained(folder, dtype=torch.float32)
        limits = (_json(folder / "sentence_bert_config.json").get("max_seq_length"), self._tokenizer.model_max_length)
        self.max_tokens = min(self._transformer.config.max_position_embeddings, *(n for n in limits if n is not None))
        if lora is not None:
            lora.require_revision(pretrained_revision(folder))
            lora.merge_into(self.linears)
        self.eval().requires_grad_(False)

    @property
    def linears(self) -> dict[str, nn.Linear]:
        """The Linears of the transformer's layers, by name; not the pooler's, whose output is not used."""
        return {name: m for name, m in linears_of(self._transformer).items() if not name.startswith("pooler")}

    @torch.no_grad()
    def forward(self, texts: Sequence[str]) -> Tensor:
        """(n, hidden) float32. A text's row does not depend on the others, to rounding."""
        return self.pooled(texts)

    @torch.no_grad()
    def read(self, texts: Sequence[str]) -> tuple[Tensor, list[TokenStates]]:
        """As `forward`, and the states of each text's tokens, from the same pass."""
        states: list[TokenStates] = [TokenStates(torch.zeros(0, 2), torch.zeros(0, 0))] * len(texts)
        return self._passed(texts, states), states

    def pooled(self, texts: Sequence[str]) -> Tensor:
        """As `forward`, with gradients to the weights that require them."""
        return self._passed(texts, None)

    def _passed(self, texts: Sequence[str], states: list[TokenStates] | None) -> Tensor:
        """The pooled states, and those of each text's tokens in `states`."""
        # texts of similar length together, so that little is padded
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        pooled = torch.zeros(len(texts), self._transformer.config.hidden_size)
        for start in range(0, len(order), _BATCH_SIZE):
            places = order[start : start + _BATCH_SIZE]
            tokens = self._tokenizer(
                [texts[i] for i in places],
                padding=True,
                truncation=True,
                max_length=self.max_tokens,
                return_tensors="pt",
                return_offsets_mapping=True,
            )
            offsets = tokens.pop("offset_mapping")  # (rows, tokens, 2)
            hidden = self._transformer(**tokens).last_hidden_state.float()  # (rows, tokens, hidden)
            pooled[places] = self._pool(hidden, tokens["attention_mask"][..., None].bool())
            if states is not None:
                # special tokens and padding are at places without characters
                real = offsets[..., 1] > offsets[..., 0]
                for row, place in enumerate(places):
                    states[place] = TokenStates(offsets[row][real[row]], hidden[row][real[row]])
        return pooled


def _mean(hidden: Tensor, real: Tensor) -> Tensor:
    return hidden.masked_fill(~real, 0).sum(1) / real.sum(1).clamp_min(1)


def _cls(hidden: Tensor, real: Tensor) -> Tensor:
    first = real.int().argmax(1, keepdim=True)  # (rows, 1, 1); not 0 where padding is on the left
    return hidden.gather(1, first.expand(-1, 1, hidden.shape[-1]))[:, 0]


def _max(hidden: Tensor, real: Tensor) -> Tensor:
    return hidden.masked_fill(~real, float("-inf")).amax(1)


_POOLING: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"mean": _mean, "cls": _cls, "max": _max}
"""(rows, tokens, hidden) and which tokens are real (rows, tokens, 1) -> (rows, hidden)."""


def _pooling(folder: Path) -> str:
    """The kind of pooling of `folder`; PretrainedNotFoundError if the folder needs more than `SentenceModel` does."""
    for name in ("modules.json", POOLING_FILE):
        if not (folder / name).is_file():
            raise PretrainedNotFoundError(
                f"{folder} has no {name}: it is not a sentence-transformers model. Name one, or {TEXT_ENCODER}"
            )
    modules = [str(module["type"]).rpartition(".")[2] for module in json.loads((folder / "modules.json").read_text())]
    pooling = _json(folder / POOLING_FILE)
    # older folders have a flag for each kind, newer ones a name
    named = pooling.get("pooling_mode") or [
        kind for kind in pooling if kind.startswith("pooling_mode_") and pooling[kind]
    ]
    kinds = [named] if isinstance(named, str) else named
    kinds = [kind.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token") for kind in kinds]
    lowers = _json(folder / "sentence_bert_config.json").get("do_lower_case", False)
    prompt = _json(folder / "config_sentence_transformers.json").get("default_prompt_name")
    usual = tuple(modules) in (_MODULES, _MODULES[:2]) and len(kinds) == 1 and kinds[0] in _POOLING
    if not usual or lowers or prompt is not None:
        found = (
            f"modules {', '.join(modules)}, pooling {' and '.join(kinds) or 'none'}, do_lower_case {lowers}, "
            f"default prompt {prompt}"
        )
        raise PretrainedNotFoundError(
            f"{folder} has other parts ({found}) than a transformer, pooling by one of {', '.join(_POOLING)}, and "
            f"normalisation. Name another sentence-transformers model, or {TEXT_ENCODER}"
        )
    return kinds[0]


def _json(path: Path) -> dict[str, Any]:
    """The content of a file that may be absent."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return content
