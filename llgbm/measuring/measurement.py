"""Activations and deltas, with their measurement; only those of equal measurements are compared.

Deltas on different probes, templates, truncations, base revisions or base storages are not comparable. So each carries
its `Measurement`, and `require_same` refuses another one and names the differences.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from llgbm.errors import AdapterMismatchError, CacheMismatchError


@dataclass(frozen=True)
class Measurement:
    """Everything that decides an activation, apart from the adapter.

    Attributes:
        probes: `ProbeSet.digest()`.
        template: sha256 of the tokenizer's chat template, "" for raw probes.
        truncation: the way in which long probes are cut.
        max_length: limit of a probe in tokens.
        tokens: sha256 of the token ids that the model reads.
        revision: revision of the base's weights.
        dtype: storage of the base's Linear weights: float32, bfloat16, int8 or int8_training.
        layers: the measured decoder layers, ascending.
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
        """Refuse another measurement.

        Args:
            what: name of the thing with the measurement `other`, for the message.

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
    """A tensor and its measurement.

    Attributes:
        values: (probes, layers, hidden) float32.

    Raises:
        AdapterMismatchError: `values` has another shape than `measurement`.
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
    """Shift of the hidden states by an adapter: the difference of two activations of one measurement."""


class Activation(_Measured):
    """Hidden states of one model at the last token of each probe."""


def _short(value: object) -> str:
    text = str(value)
    return f"{text[:12]}..." if len(text) == 64 else text
