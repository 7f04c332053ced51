"""EncoderLoRA: a low-rank change of a text encoder's Linears, part of a generator's artefact.

`python -m training encoder` tunes the encoder on the wordings of tasks. The full change is as large as the encoder, so
only its best low-rank approximation is kept. It is merged into the weights when the encoder is loaded, and then costs
nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from llgbm.errors import AdapterFormatError, AdapterMismatchError, ConfigError
from llgbm.files.parameters import values_digest
from llgbm.files.synced import replace_file

_A, _B = ".lora_A.weight", ".lora_B.weight"
"""PEFT's names of the two factors of a module."""


def require_rank(rank: int, weights: Mapping[str, Tensor]) -> None:
    """Refuse a rank that a change of these weights (out, in) cannot have.

    Raises:
        ConfigError: the rank is below 1, or larger than the smallest side of a weight.
    """
    most = min(min(weight.shape) for weight in weights.values())
    if not 1 <= rank <= most:
        raise ConfigError(f"rank must be from 1 to {most}, the smallest side of the encoder's weights, not {rank}")


def lora_digest(lora: EncoderLoRA | None) -> str | None:
    """The digest of a LoRA; None for none."""
    return None if lora is None else lora.digest


@dataclass(frozen=True, eq=False)
class EncoderLoRA:
    """The change B A of each weight, by the Linear's name in the transformer; its scale is 1.

    Attributes:
        a: (rank, in), floating point.
        b: (out, rank), floating point.
        tuned_on: `encoder`, the name of the tuned encoder, and `revision`, its `pretrained_revision`; empty if unknown.
            A part of the file, not of the digest.

    Raises:
        AdapterFormatError: a module lacks a factor, the shapes of a pair do not match, or a value is not finite.
    """

    a: Mapping[str, Tensor]
    b: Mapping[str, Tensor]
    tuned_on: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.a or self.a.keys() != self.b.keys():
            raise AdapterFormatError("an encoder's LoRA needs both factors, A and B, of each module, and a module")
        for name, a in self.a.items():
            b = self.b[name]
            if a.dim() != 2 or b.dim() != 2 or a.shape[0] != b.shape[1]:
                raise AdapterFormatError(f"{name}: A {tuple(a.shape)} and B {tuple(b.shape)} have no product B A")
            if not all(t.is_floating_point() and bool(torch.isfinite(t).all()) for t in (a, b)):
                raise AdapterFormatError(f"{name}: a factor has values that are not finite numbers; tune again")

    @classmethod
    def of_difference(cls, before: Mapping[str, Tensor], after: Mapping[str, Tensor], rank: int) -> EncoderLoRA:
        """The nearest change of a rank, with factors in bfloat16.

        Args:
            before, after: weights (out, in) by module name.
            rank: at most the smaller side of every weight.

        Raises:
            ConfigError: the rank is out of range.
        """
        require_rank(rank, before)
        a, b = {}, {}
        for name, weight in before.items():
            # by Eckart and Young, the first terms of the SVD are the nearest matrix of their rank
            u, s, vh = torch.linalg.svd((after[name] - weight).detach().float(), full_matrices=False)
            root = s[:rank].sqrt()  # half of the scale in each factor, so that both round alike
            a[name] = (root[:, None] * vh[:rank]).to(torch.bfloat16).contiguous()
            b[name] = (u[:, :rank] * root).to(torch.bfloat16).contiguous()
        return cls(a, b)

    @cached_property
    def digest(self) -> str:
        """sha256 of names, shapes and values; equal on every machine."""
        return values_digest(dict(sorted(self.tensors().items())), "<f4")

    def require_revision(self, revision: str) -> None:
        """Refuse a text encoder whose weights are not the tuned ones, if those are known.

        Args:
            revision: `pretrained_revision` of the encoder.

        Raises:
            AdapterMismatchError: the tuned encoder has another revision.
        """
        if self.tuned_on.get("revision", revision) != revision:
            raise AdapterMismatchError(
                f"a text encoder's LoRA was tuned on {self.tuned_on.get('encoder', 'an encoder')} of revision "
                f"{self.tuned_on['revision']}, but this encoder has revision {revision}; use that encoder, or tune "
                "this one with `python -m training encoder`"
            )

    def merge_into(self, linears: Mapping[str, nn.Linear]) -> None:
        """Add B A to the weights, in place.

        Args:
            linears: all Linears of the encoder, by name.

        Raises:
            AdapterMismatchError: the encoder has other Linears, or one of another shape; nothing was changed.
        """
        for name, a in self.a.items():
            shape = (self.b[name].shape[0], a.shape[1])
            if name not in linears or tuple(linears[name].weight.shape) != shape:
                found = f"of shape {tuple(linears[name].weight.shape)}" if name in linears else "not there"
                raise AdapterMismatchError(
                    f"a text encoder's LoRA changes the Linear {name} of shape {shape}, which is {found} in this "
                    "encoder; use the encoder that was tuned"
                )
        # all Linears are tuned, so one without factors means a larger encoder, such as MiniLM with 12 layers
        if more := sorted(linears.keys() - self.a.keys()):
            raise AdapterMismatchError(
                f"a text encoder's LoRA has no factors for the Linear {more[0]} of this encoder; use the encoder that "
                "was tuned"
            )
        with torch.no_grad():
            for name, a in self.a.items():
                linears[name].weight += self.b[name].float() @ a.float()

    def tensors(self) -> dict[str, Tensor]:
        """The factors under PEFT's names, for a file."""
        return {name + _A: a for name, a in self.a.items()} | {name + _B: b for name, b in self.b.items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], tuned_on: Mapping[str, str] | None = None) -> EncoderLoRA:
        """Inverse of `tensors`.

        Raises:
            AdapterFormatError: these are not the factors of an encoder's LoRA.
        """
        if unknown := [name for name in tensors if not name.endswith((_A, _B))]:
            raise AdapterFormatError(f"{unknown[0]} is no factor of an encoder's LoRA: names end in {_A} or {_B}")
        a, b = ({n.removesuffix(end): t for n, t in tensors.items() if n.endswith(end)} for end in (_A, _B))
        return cls(a, b, tuned_on or {})

    def save(self, path: Path) -> None:
        """Write a safetensors file, atomically."""
        replace_file(path, save_tensors(self.tensors(), metadata=dict(self.tuned_on)))

    @classmethod
    def load(cls, path: Path) -> EncoderLoRA:
        """Read the file of `save`.

        Raises:
            AdapterFormatError: the file cannot be read, or is another one.
        """
        try:
            tensors = load_tensors(path.read_bytes())
            with safe_open(path, "pt") as file:
                return cls.from_tensors(tensors, file.metadata())
        except OSError as error:
            raise AdapterFormatError(
                f"{path}: cannot be read: {error.strerror}; name the file of `python -m training encoder`"
            ) from error
        except (SafetensorError, AdapterFormatError) as error:
            raise AdapterFormatError(f"{path}: is not the LoRA of a text encoder: {error}") from error
