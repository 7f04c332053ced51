"""LoRAWeights <-> tokens (N, T, D), the input of networks that read adapters; exact in both directions.

Token layout. Every module, in the order of the spec, gives its A and then its B. A side is read by rank row: row i of
A, (in_features,), or column i of B, (out_features,), so both sides list the same rank components. A rank row is cut
into chunks of D values, one token each; the last chunk is padded with zeros, and `TokenLayout.mask` is False there.
`TokenIndex` gives the layer, target, side, rank row and chunk of each token.

Normalisation divides each side of each module by one power of two near its root mean square over the fitted adapters.
A power of two loses no bits. Nothing is subtracted: the factors of a LoRA are symmetric around zero, and subtracting a
mean in float32 would cost the smallest values their digits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from llgbm.config import TARGET_MODULES, LoRASpec
from llgbm.errors import AdapterMismatchError, ConfigError
from llgbm.lora import LoRAWeights

_EXPONENT_LIMIT = 60
"""Scales stay within 2**-60 .. 2**60, so neither tokens nor weights overflow."""


class TokenIndex(NamedTuple):
    """The position of each token; all (T,) int64.

    `layer` is the decoder layer, `target` the index into `llgbm.config.TARGET_MODULES`, `side` 0 for A and 1 for B,
    `row` the rank row, `chunk` the index of the token in that row.
    """

    layer: Tensor
    target: Tensor
    side: Tensor
    row: Tensor
    chunk: Tensor


@dataclass(frozen=True)
class TokenLayout:
    """Layout of adapters of `spec` in tokens of `token_size` values (the D of (N, T, D)).

    Raises:
        ConfigError: `token_size` is below 1.
    """

    spec: LoRASpec
    token_size: int = 128

    def __post_init__(self) -> None:
        if self.token_size < 1:
            raise ConfigError(f"token_size must be at least 1, not {self.token_size}")

    def chunks(self, features: int) -> int:
        """Tokens of one rank row of `features` values."""
        return math.ceil(features / self.token_size)

    @cached_property
    def num_tokens(self) -> int:
        """T: tokens of one adapter; a side of a module has `rank * chunks` of them."""
        return sum(
            self.spec.rank * (self.chunks(m.in_features) + self.chunks(m.out_features)) for m in self.spec.modules
        )

    @cached_property
    def index(self) -> TokenIndex:
        """Layer, target, side, rank row and chunk of every token."""
        entries = [
            (module.layer, TARGET_MODULES.index(module.target), side, row, chunk)
            for module in self.spec.modules
            for side, features in enumerate((module.in_features, module.out_features))
            for row in range(self.spec.rank)
            for chunk in range(self.chunks(features))
        ]
        return TokenIndex(*torch.tensor(entries, dtype=torch.long).unbind(1))

    @cached_property
    def mask(self) -> Tensor:
        """(T, D) bool: True for a value of the adapter, False for padding."""
        places = torch.arange(self.token_size)
        blocks = []
        for module in self.spec.modules:
            for features in (module.in_features, module.out_features):
                starts = torch.arange(self.chunks(features)) * self.token_size
                row = starts[:, None] + places[None, :] < features
                blocks.append(row.repeat(self.spec.rank, 1))
        return torch.cat(blocks)


@dataclass(frozen=True)
class TokenNormalizer:
    """One divisor for each side of each module.

    Attributes:
        scales: `{module name}.lora_A` or `{module name}.lora_B` -> divisor, a power of two.
    """

    scales: Mapping[str, float]

    @classmethod
    def fit(cls, adapters: Iterable[LoRAWeights]) -> TokenNormalizer:
        """Scales that give the fitted adapters a root mean square between 0.7 and 1.5 on every side.

        Ranks may differ; a module is fitted on the adapters that have it. A side that is zero in all of them gets 1.

        Raises:
            AdapterMismatchError: no adapter is given.
        """
        squares: dict[str, list[float]] = {}
        for adapter in adapters:
            adapter.require_finite()
            for name, a, b in adapter.pairs():
                squares.setdefault(f"{name}.lora_A", []).append(float(a.detach().double().square().mean()))
                squares.setdefault(f"{name}.lora_B", []).append(float(b.detach().double().square().mean()))
        if not squares:
            raise AdapterMismatchError("a token normaliser needs at least one adapter to fit")
        return cls({key: _power_of_two(math.sqrt(sum(v) / len(v))) for key, v in squares.items()})

    def require_covers(self, spec: LoRASpec) -> None:
        """Raise AdapterMismatchError that names the first side of `spec` without a scale."""
        for name in spec.names:
            for side in "AB":
                if f"{name}.lora_{side}" not in self.scales:
                    raise AdapterMismatchError(
                        f"the token normaliser has no scale for {name}.lora_{side}; fit it on adapters of these modules"
                    )


def tokenize(adapters: Sequence[LoRAWeights], layout: TokenLayout, normalizer: TokenNormalizer) -> Tensor:
    """Tokens of adapters of one spec: (N, T, D) float32, 0 where `layout.mask` is False. Gradients pass.

    Raises:
        AdapterMismatchError: there is no adapter, one has another spec than the layout, or a scale is missing.
    """
    if not adapters:
        raise AdapterMismatchError("there is no adapter to make tokens of")
    normalizer.require_covers(layout.spec)
    for adapter in adapters:
        if adapter.spec.rank != layout.spec.rank or adapter.spec.modules != layout.spec.modules:
            raise AdapterMismatchError(
                f"an adapter of rank {adapter.spec.rank} with {len(adapter.spec.modules)} modules does not fit a "
                f"layout of rank {layout.spec.rank} with {len(layout.spec.modules)} modules; use "
                "the layout of its own spec"
            )
    return torch.stack([_tokens_of(adapter, layout, normalizer) for adapter in adapters])


def detokenize(tokens: Tensor, layout: TokenLayout, normalizer: TokenNormalizer) -> list[LoRAWeights]:
    """The adapters of `tokens` (N, T, D), in their dtype; values outside the mask are ignored. Gradients pass.

    Raises:
        AdapterMismatchError: the tokens have another shape than the layout, or a scale is missing.
    """
    expected = (layout.num_tokens, layout.token_size)
    if tokens.dim() != 3 or tuple(tokens.shape[1:]) != expected:
        raise AdapterMismatchError(
            f"tokens are {tuple(tokens.shape)}, this layout makes (N, {expected[0]}, {expected[1]})"
        )
    normalizer.require_covers(layout.spec)
    return [_adapter_of(row, layout, normalizer) for row in tokens.unbind()]


def _tokens_of(adapter: LoRAWeights, layout: TokenLayout, normalizer: TokenNormalizer) -> Tensor:
    blocks = []
    for name, a, b in adapter.pairs():
        for side, rows in (("A", a), ("B", b.t())):
            # (rank, features) -> padded (rank, chunks * D) -> (rank * chunks, D)
            scaled = rows.float() / normalizer.scales[f"{name}.lora_{side}"]
            spare = layout.chunks(rows.shape[1]) * layout.token_size - rows.shape[1]
            blocks.append(torch.nn.functional.pad(scaled, (0, spare)).reshape(-1, layout.token_size))
    return torch.cat(blocks)


def _adapter_of(tokens: Tensor, layout: TokenLayout, normalizer: TokenNormalizer) -> LoRAWeights:
    spec = layout.spec
    a: dict[str, Tensor] = {}
    b: dict[str, Tensor] = {}
    start = 0
    for module in spec.modules:
        for side, features in (("A", module.in_features), ("B", module.out_features)):
            # (rank * chunks, D) -> (rank, chunks * D) -> (rank, features)
            count = spec.rank * layout.chunks(features)
            rows = tokens[start : start + count].reshape(spec.rank, -1)[:, :features]
            rows = rows * normalizer.scales[f"{module.name}.lora_{side}"]
            start += count
            if side == "A":
                a[module.name] = rows
            else:
                b[module.name] = rows.t()
    return LoRAWeights(spec, a, b)


def _power_of_two(value: float) -> float:
    if value <= 0:
        return 1.0
    exponent = round(math.log2(value))
    return 2.0 ** max(-_EXPONENT_LIMIT, min(_EXPONENT_LIMIT, exponent))
