"""DeltaHead: predicts an adapter's delta from its weights, without a pass through the base.

It reads tensors, not text. To first order an adapter's delta is linear in the products BA of its modules, and a
product's effect on the probes depends on few directions of its input and output. So each module has learned left and
right factors, V (out, k) and U (in, k), and is reduced to the k x k sketch `scaling * V' B A U`. The sketch depends on
BA only: it is the same for every factorisation and every rank. A linear map takes all sketches to the delta; a small
network without biases adds the nonlinear part. The zero adapter has a delta of exactly 0.

`llgbm.matching.head_calibration` sets U, V and the linear map from the base; a head can also be trained from random
factors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from llgbm.config import LoRASpec, ModelSpec, ModuleShape
from llgbm.errors import AdapterMismatchError, ConfigError
from llgbm.lora import LoRAWeights


@dataclass(frozen=True)
class DeltaHeadConfig:
    """Size of a `DeltaHead`.

    Raises:
        ConfigError: a size is below 1.
    """

    sketch_size: int = 8
    """k: number of directions of each module's input and of its output."""
    output_rank: int = 192
    """Dimension of the space of predicted deltas."""
    correction_size: int = 128
    """Width of the network for the nonlinear part."""

    def __post_init__(self) -> None:
        for field, value in asdict(self).items():
            if value < 1:
                raise ConfigError(f"DeltaHeadConfig.{field} must be at least 1, not {value}")

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class DeltaHead(nn.Module):
    """Predicts deltas at `layers` for adapters of the modules in `lora`.

    Args:
        layers: decoder layers of the predicted deltas, as in `llgbm.measuring.measurement.Measurement.layers`.
        seed: of the initial parameters; the global random state is unchanged.

    Attributes:
        modules_read: the modules that it reads, with their shapes.
        layers: as given.
        sketch_scale: (modules,) float32, root mean square of each module's sketches in the calibration.
        output_scale: (layers,) float32, root mean square of the deltas in the calibration.
    """

    sketch_scale: Tensor
    output_scale: Tensor

    def __init__(
        self,
        model: ModelSpec,
        lora: LoRASpec,
        layers: Sequence[int],
        config: DeltaHeadConfig | None = None,
        *,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not layers or not all(0 <= i < model.num_layers for i in layers):
            raise ConfigError(f"layers must be some of 0 to {model.num_layers - 1}, not {list(layers)}")
        lora.require_fits(model)
        self.config = config or DeltaHeadConfig()
        self.layers, self.modules_read, self.hidden_size = tuple(layers), lora.modules, model.hidden_size
        self._targets = lora.target_modules
        k, rank, width = self.config.sketch_size, self.config.output_rank, self.config.correction_size
        count, out = len(lora.modules), len(self.layers) * model.hidden_size
        self._groups = _by_shape(lora.modules)
        if k > (smallest := min(min(shape) for shape in self._groups)):
            raise ConfigError(f"sketch_size {k} is larger than the smallest side of a module, {smallest}")
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int, scale: float) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape, generator=generator) * scale)

        # one parameter for each shape of modules: U (m, in, k) and V (m, out, k) for m modules of that shape
        self.right = nn.ParameterDict(
            {_key(s): normal(len(m), s[0], k, scale=s[0] ** -0.5) for s, m in self._groups.items()}
        )
        self.left = nn.ParameterDict(
            {_key(s): normal(len(m), s[1], k, scale=s[1] ** -0.5) for s, m in self._groups.items()}
        )
        # linear and write start at zero: a fresh head predicts zero
        self.linear = nn.Parameter(torch.zeros(count, k * k, rank))
        self.basis = normal(rank, out, scale=out**-0.5)
        self.gate = normal(count, width, scale=0.1)
        self.read = normal(len(self._targets), k * k, width, scale=1 / k)
        self.mix = normal(width, width, scale=width**-0.5)
        self.write = nn.Parameter(torch.zeros(width, rank))
        self.register_buffer("sketch_scale", torch.ones(count))
        self.register_buffer("output_scale", torch.ones(len(self.layers)))
        self._target_of = [self._targets.index(m.target) for m in lora.modules]

    def factors(self) -> list[tuple[Tensor, Tensor]]:
        """Views of (right (in, k), left (out, k)) of each module, in the order of `modules_read`."""
        found: dict[int, tuple[Tensor, Tensor]] = {}
        for shape, members in self._groups.items():
            for place, member in enumerate(members):
                found[member] = (self.right[_key(shape)][place], self.left[_key(shape)][place])
        return [found[i] for i in range(len(self.modules_read))]

    def sketch(self, adapters: Sequence[LoRAWeights]) -> Tensor:
        """The sketches (adapters, modules, k * k) float32, 0 for modules that an adapter lacks.

        Raises:
            AdapterMismatchError: no adapter, or one changes a module that the head does not read.
        """
        if not adapters:
            raise AdapterMismatchError("the delta head was given no adapter")
        for spec in dict.fromkeys(adapter.spec for adapter in adapters):
            if foreign := sorted(set(spec.modules) - set(self.modules_read), key=lambda m: m.name):
                raise AdapterMismatchError(
                    f"the delta head does not read {foreign[0].name} ({foreign[0].in_features} -> "
                    f"{foreign[0].out_features}); make a head for the modules of this adapter"
                )
        return torch.stack([self._sketch_one(adapter) for adapter in adapters])

    def forward(self, adapters: Sequence[LoRAWeights]) -> Tensor:
        """Predicted deltas (adapters, layers, hidden) float32, with gradients to the head and every A and B.

        Raises:
            AdapterMismatchError: no adapter, or one changes a module that the head does not read.
        """
        return self.from_sketch(self.sketch(adapters))

    def from_sketch(self, sketch: Tensor) -> Tensor:
        """Deltas (adapters, layers, hidden) of sketches (adapters, modules, k * k)."""
        # n adapters, m modules, f = k * k, r = output_rank, w = correction_size
        scaled = sketch / self.sketch_scale[:, None]
        linear = torch.einsum("nmf,mfr->nr", scaled, self.linear)
        read = torch.einsum("nmf,mfw->nmw", scaled, self.read[self._target_of])
        # no bias anywhere and gelu(0) = 0, so a zero sketch gives a zero delta; the sum of m terms keeps unit size
        pooled = nn.functional.gelu(read * (1 + self.gate)).sum(1) / len(self.modules_read) ** 0.5
        coordinates = linear + nn.functional.gelu(pooled @ self.mix) @ self.write  # (n, r)
        deltas = (coordinates @ self.basis).unflatten(1, (len(self.layers), self.hidden_size))
        scaled_up: Tensor = deltas * self.output_scale[:, None]
        return scaled_up

    def predict_frozen(self, adapters: Sequence[LoRAWeights]) -> Tensor:
        """As `forward`, with gradients to the adapters only: the head's parameters get none."""
        frozen = {name: parameter.detach() for name, parameter in self.named_parameters()}
        deltas: Tensor = torch.func.functional_call(self, frozen, (adapters,))
        return deltas

    def _sketch_one(self, adapter: LoRAWeights) -> Tensor:
        k = self.config.sketch_size
        sketches = self.sketch_scale.new_zeros(len(self.modules_read), k, k)
        for shape, members in self._groups.items():
            here = [i for i, m in enumerate(members) if self.modules_read[m].name in adapter.a]
            if not here:
                continue
            names = [self.modules_read[members[i]].name for i in here]
            a = torch.stack([adapter.a[n] for n in names]).float()
            b = torch.stack([adapter.b[n] for n in names]).float()
            left, right = self.left[_key(shape)][here], self.right[_key(shape)][here]
            # (V' B) (A U): (m, k, r) @ (m, r, k), so the dense product BA is never made
            product = torch.bmm(torch.bmm(left.transpose(1, 2), b), torch.bmm(a, right))
            sketches = sketches.index_copy(0, torch.tensor([members[i] for i in here]), product)
        return adapter.spec.scaling * sketches.flatten(1)


def _by_shape(modules: Sequence[ModuleShape]) -> dict[tuple[int, int], list[int]]:
    """(in_features, out_features) -> indices in `modules`, so that equal shapes share one batched product."""
    groups: dict[tuple[int, int], list[int]] = {}
    for place, module in enumerate(modules):
        groups.setdefault((module.in_features, module.out_features), []).append(place)
    return groups


def _key(shape: tuple[int, int]) -> str:
    return f"{shape[0]}x{shape[1]}"
