"""Delta activations: how far an adapter moves the base's hidden states on a set of probes (arXiv 2509.04442).

v(M) is the mean over probes of the residual stream at the last real token; delta = v(base + LoRA) - v(base). This
module keeps one vector per probe and layer, (probes, layers, hidden); `mean` gives v. A layer's vector is the output
of that decoder layer; for the last layer it is the stream before the final norm. No logits are computed.

Probes are packed without padding. Their common prefix is stored once, and a mask separates them, so a probe's vector
does not depend on the others: packed and alone agree up to rounding, 1e-5 on a float32 base. In bfloat16 and int8 an
activation between two representable values may be rounded to either, so differences are larger. Deltas on such a base
are compared only with deltas on the same base, see `Measurement`. Gradients reach every A and B.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from llgbm.base import Base, require_gradients
from llgbm.errors import AdapterMismatchError, ConfigError
from llgbm.functional import FunctionalLoRA
from llgbm.lora import LoRAWeights
from llgbm.measuring.delta_cache import DeltaCache
from llgbm.measuring.measurement import Activation, Delta, Measurement
from llgbm.measuring.probe_encoding import encode_probes, measurement_of, resolve_layers, spread_layers
from llgbm.packed.batch import Row, pack, packed_hidden_states
from llgbm.probes import ProbeSet

__all__ = [
    "Activation",
    "Delta",
    "DeltaCache",
    "DeltaMeter",
    "Measurement",
    "activations",
    "compute_adapter_delta",
    "compute_base_activation",
    "encode_probes",
    "measurement_of",
    "spread_layers",
]

_PACK_TOKENS = 512
"""Tokens per adapter in one pass. The cost of attention grows with the square, so more would gain nothing."""


def activations(
    base: Base,
    input_ids: Sequence[Sequence[int]],
    layers: Sequence[int] | None = None,
    *,
    functional: FunctionalLoRA | None = None,
    weights: Sequence[LoRAWeights | None] = (None,),
) -> Tensor:
    """Residual stream after `layers` at the last token of each sequence.

    Args:
        input_ids: token ids of each sequence, without padding.
        layers: decoder layers, -1 for the last; None for the last only. Returned in ascending order.
        functional: the hooks on `base.model`; made for this call when None.
        weights: adapters to run in one pass, None for the plain base.

    Returns:
        (len(weights), sequences, layers, hidden) float32, with gradients if the weights require them and grad is
        enabled.

    Raises:
        ConfigError: the base is in training mode (dropout would make deltas random), it is in int8 and weights require
            gradients, or there is no such layer.
        AdapterMismatchError: no weights, no sequences, an empty sequence, or an adapter does not fit the base.
    """
    if base.model.training:
        raise ConfigError(
            "the base is in training mode, where dropout makes deltas random; call base.model.eval() first"
        )
    if not weights or not input_ids:
        raise AdapterMismatchError(f"{len(weights)} adapters and {len(input_ids)} probes: need at least one of each")
    if torch.is_grad_enabled() and any(_wants_gradients(w) for w in weights if w is not None):
        require_gradients(base)
    functional = functional or FunctionalLoRA(base.model)
    chosen = resolve_layers(base.spec, layers)
    parts = []
    for members in _packs(input_ids):
        # one packed row with a copy of the sequences for each adapter
        batch = pack([[Row(input_ids[i]) for i in members]] * len(weights)).on(base.device)
        with (
            keep_states(base.model, chosen, batch.flat_places(batch.last_index)) as kept,
            functional.applied(weights, lengths=batch.lengths),
        ):
            packed_hidden_states(base.model, batch)
        # kept: layer -> (adapters * sequences, hidden), adapter by adapter
        states = torch.stack([kept[i] for i in chosen], dim=1).float()  # (adapters * sequences, layers, hidden)
        parts.append(states.unflatten(0, (len(weights), len(members))))
    return torch.cat(parts, dim=1)


@torch.no_grad()
def compute_base_activation(base: Base, probes: ProbeSet, layers: Sequence[int] | None = None) -> Activation:
    """Activation of the plain base on `probes`, for all adapters. No gradient."""
    values = activations(base, encode_probes(base.tokenizer, probes), layers)[0].cpu()
    return Activation(values, measurement_of(base, probes, layers))


@torch.no_grad()
def compute_adapter_delta(base: Base, weights: LoRAWeights, probes: ProbeSet, base_activation: Activation) -> Delta:
    """Delta of one adapter, at the layers of `base_activation`. No gradient.

    Args:
        base_activation: of the same base and the same probes, from `compute_base_activation`.

    Raises:
        CacheMismatchError: `base_activation` has another measurement; the message names the differences.
        AdapterMismatchError: the adapter does not fit the base.
    """
    meter = DeltaMeter(base, probes, base_activation.measurement.layers, base_activation)
    return Delta(meter.deltas([weights])[0].cpu(), meter.measurement)


class DeltaMeter:
    """Measures deltas on one base with one set of probes: the student's side of a delta loss.

    Token ids, hooks and the activation of the plain base are computed once.

    Args:
        base_activation: from a `DeltaCache` or `compute_base_activation`; measured now when None.

    Attributes:
        measurement: teachers' deltas must have the same; open the `DeltaCache` with it.
        base_activation: of the plain base.

    Raises:
        CacheMismatchError: `base_activation` has another measurement; the message names the differences.
        ConfigError: there is no such layer, or the probes' `max_length` leaves no room for text.
    """

    def __init__(
        self,
        base: Base,
        probes: ProbeSet,
        layers: Sequence[int] | None = None,
        base_activation: Activation | None = None,
    ) -> None:
        self.measurement = measurement_of(base, probes, layers)
        if base_activation is not None:
            self.measurement.require_same(base_activation.measurement, what="the base activation")
        self._base, self._functional = base, FunctionalLoRA(base.model)
        self._ids = encode_probes(base.tokenizer, probes)
        self.base_activation = base_activation or compute_base_activation(base, probes, layers)

    def deltas(self, weights: Sequence[LoRAWeights]) -> Tensor:
        """(adapters, probes, layers, hidden) float32; gradients reach every A and B unless grad is off.

        Raises:
            AdapterMismatchError: no weights, or an adapter does not fit the base.
        """
        layers = self.measurement.layers
        states = activations(self._base, self._ids, layers, functional=self._functional, weights=weights)
        return states - self.base_activation.values.to(states.device)


def delta_cosine(delta: Tensor, teacher: Tensor) -> float:
    """Cosine of two mean deltas (layers, hidden), averaged over layers; 0 where one is zero."""
    return float(torch.nn.functional.cosine_similarity(delta, teacher, dim=-1, eps=1e-12).mean())


def _wants_gradients(weights: LoRAWeights) -> bool:
    return any(tensor.requires_grad for tensor in weights.tensors)


def _packs(input_ids: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Indices of the sequences of each packed row; their common prefix counts once per row."""
    # zip stops at the shortest sequence, and so does the common prefix
    same = (len(set(tokens)) == 1 for tokens in zip(*input_ids, strict=False))
    shared = sum(1 for _ in takewhile(bool, same))
    members: list[int] = []
    total = shared
    for number, ids in enumerate(input_ids):
        if members and total + len(ids) - shared > _PACK_TOKENS:
            yield members
            members, total = [], shared
        members.append(number)
        total += len(ids) - shared
    yield members


@contextmanager
def keep_states(model: nn.Module, layers: Sequence[int], positions: Tensor) -> Iterator[dict[int, Tensor]]:
    """Inside, collects the outputs of decoder layers at the flat places `positions` (n,) of a batch.

    Args:
        positions: from `PackedBatch.flat_places`.

    Yields:
        Layer -> (n, hidden), filled by the forward pass. States of other tokens are not kept.
    """
    kept: dict[int, Tensor] = {}

    def keep(layer: int) -> RemovableHandle:
        def hook(module: nn.Module, args: object, output: Tensor | tuple[Tensor, ...]) -> None:
            states = output if isinstance(output, Tensor) else output[0]
            kept[layer] = states.flatten(0, 1)[positions]  # (rows, tokens, hidden) -> (n, hidden)

        return model.get_submodule(f"model.layers.{layer}").register_forward_hook(hook)

    handles = [keep(layer) for layer in layers]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()
