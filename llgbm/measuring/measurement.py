"""Activations and deltas, with the measurement that must be equal before two of them are compared.

Student and teacher deltas on other probes, or under another template, truncation, revision or storage of the
base, are numbers about different things. So each carries its `Measurement`, and `require_same` refuses and
names what differs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from llgbm.errors import AdapterMismatchError, CacheMismatchError


@dataclass(frozen=True)
class Measurement:
    """What decides the numbers of an activation, apart from the adapter.

    Attributes:
        probes: `ProbeSet.digest()`.
        template: sha256 of the tokenizer's chat template, "" for raw probes.
        truncation: how long probes are cut.
        max_length: limit of a probe in tokens.
        tokens: sha256 of the token ids that the model reads.
        revision: which weights of the base.
        dtype: how the base stores its Linear weights: float32, bfloat16, int8 or int8_training.
        layers: decoder layers whose outputs are read, ascending.
        num_probes: number of probes.
        hidden_size: width of the residual stream.
    """

    probes: str
    template: str
    truncation: str
    max_length: int
    tokens: str
    revision: str
    dtype: str
    layers: tuple[int, ...]
    num_probes: int
    hidden_size: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """(probes, layers, hidden) of the activations."""
        return self.num_probes, len(self.layers), self.hidden_size

    def require_same(self, other: Measurement, *, what: str) -> None:
        """Refuse what was measured in another way.

        Args:
            what: names the thing that was measured as `other`, for the message.

        Raises:
            CacheMismatchError: lists every field that differs, with both values.
        """
        mine, theirs = asdict(self), asdict(other)
        different = [
            f"{key} is {_short(theirs[key])}, expected {_short(mine[key])}" for key in mine if mine[key] != theirs[key]
        ]
        if different:
            raise CacheMismatchError(
                f"{what} was measured in another way: {'; '.join(different)}. Measure it again with these settings, or "
                "use the settings it was made with"
            )

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "layers": list(self.layers)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Measurement:
        """Raises CacheMismatchError: a key is missing or unknown, as in a manifest of another version."""
        try:
            return cls(**{**data, "layers": tuple(int(i) for i in data["layers"])})
        except (KeyError, TypeError, ValueError) as error:
            raise CacheMismatchError(f"this is not a measurement that this version wrote: {error!r}") from error


@dataclass(frozen=True, eq=False)
class _Measured:
    """A tensor and how it was measured.

    Attributes:
        values: (probes, layers, hidden) float32.

    Raises:
        AdapterMismatchError: `values` does not have the shape that `measurement` says.
    """

    values: Tensor
    measurement: Measurement

    def __post_init__(self) -> None:
        if tuple(self.values.shape) != self.measurement.shape:
            raise AdapterMismatchError(
                f"the values are {tuple(self.values.shape)}, their measurement says {self.measurement.shape}"
            )

    @property
    def mean(self) -> Tensor:
        """The mean over probes, (layers, hidden): v(M) for an activation, v(M) - v(B) for a delta."""
        return self.values.mean(0)


class Delta(_Measured):
    """How far an adapter moves the hidden states: a difference of two activations of one measurement."""


class Activation(_Measured):
    """Hidden states of one model at the last token of each probe."""

    def minus(self, base: Activation) -> Delta:
        """The delta between this model and `base`.

        Raises:
            CacheMismatchError: the two were measured in different ways; the message says which.
        """
        self.measurement.require_same(base.measurement, what="the base activation")
        return Delta(self.values - base.values, self.measurement)


def _short(value: object) -> str:
    text = str(value)
    return f"{text[:12]}..." if len(text) == 64 else text
