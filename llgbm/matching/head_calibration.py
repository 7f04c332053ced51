"""Calibrates a DeltaHead on its base: the head becomes the base's linearisation, reduced to sketches.

To first order an adapter's delta is a sum over modules and tokens of G (scaling * B A) x. Here x is the module's input
in the plain base, and G the derivative of the probes' hidden states with respect to the module's output. One forward
pass gives every x; one backward pass gives the gradients along one direction of the deltas. The right factors become
the principal directions of x, the left ones those of the gradients. The linear map follows from both, for as many
directions of the deltas as there are backward passes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from llgbm.base import Base, require_gradients
from llgbm.delta import keep_states
from llgbm.errors import AdapterMismatchError, ConfigError
from llgbm.lora import LoRAWeights
from llgbm.matching.delta_head import DeltaHead
from llgbm.measuring.probe_encoding import encode_probes
from llgbm.packed.batch import Row, pack, packed_hidden_states
from llgbm.probes import ProbeSet

_PILOT_PASSES = 6
"""Backward passes used to find the left factors; more change them little."""

_ITERATIONS = 16
"""Steps of the subspace iteration."""

_KEPT_ROWS = 4
"""Random combinations of a pilot pass's gradients kept per wanted direction."""


def calibrate_delta_head(
    head: DeltaHead,
    base: Base,
    probes: ProbeSet,
    adapters: Sequence[LoRAWeights],
    deltas: Tensor,
    *,
    directions: int = 32,
    seed: int = 0,
) -> None:
    """Set the head's factors, linear map and scales, in place. Its nonlinear part is unchanged.

    Args:
        probes: the probes of the deltas. All are packed into one row, whose graph must fit into memory.
        adapters: typical adapters, such as teachers, for the scale of their sketches.
        deltas: (n, layers, hidden) or (n, probes, layers, hidden) typical deltas. The backward passes run along their
            principal directions, and along random ones if there are more passes than deltas.
        directions: number of backward passes; at most the head's `output_rank`.

    Raises:
        AdapterMismatchError: the deltas have other layers or another width than the head, or there are no
            adapters.
        ConfigError: `directions` is out of range, the base is in training mode, or its Linears pass no
            gradients.
    """
    mean = deltas.detach().mean(1) if deltas.dim() == 4 else deltas.detach()
    shape = (len(head.layers), head.hidden_size)
    if mean.dim() != 3 or tuple(mean.shape[1:]) != shape or not len(mean):
        raise AdapterMismatchError(f"deltas are {tuple(deltas.shape)}, the head predicts (n, {shape[0]}, {shape[1]})")
    if not 1 <= directions <= head.config.output_rank:
        raise ConfigError(f"directions must be 1 to output_rank {head.config.output_rank}, not {directions}")
    generator = torch.Generator().manual_seed(seed)
    scale = mean.square().mean((0, 2)).sqrt().clamp_min(1e-8)  # (layers,)
    basis = _main_directions((mean / scale[:, None]).flatten(1), directions, generator)  # (directions, layers * hidden)
    read, written, states = _linearised(head, base, probes)
    values = (states / scale[:, None]).flatten() @ basis.t()  # (directions,), each the start of a backward pass
    factors = _find_factors(head, read, written, values[:_PILOT_PASSES], generator)
    linear = torch.stack([_cores(factors, read, grads) for grads in _output_gradients(values, written)], dim=-1)
    with torch.no_grad():
        for (right, left), (new_right, new_left) in zip(head.factors(), factors, strict=True):
            right.copy_(new_right)
            left.copy_(new_left)
        head.output_scale.copy_(scale)
        head.sketch_scale.copy_(head.sketch(adapters).square().mean((0, 2)).sqrt().clamp_min(1e-8))
        head.linear.zero_()
        head.linear[:, :, :directions] = linear * head.sketch_scale[:, None, None]
        head.basis[:directions] = basis


def _linearised(head: DeltaHead, base: Base, probes: ProbeSet) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Module inputs (tokens, in), module outputs (1, tokens, out) and mean states (layers, hidden).

    Outputs and states carry the graph.
    """
    if base.model.training:
        raise ConfigError("the base is in training mode; call base.model.eval() first")
    require_gradients(base)
    batch = pack([[Row(ids) for ids in encode_probes(base.tokenizer, probes)]])
    names = [module.name for module in head.modules_read]
    with (
        torch.enable_grad(),
        _traced(base.model, names) as (read, written),
        keep_states(base.model, head.layers, batch.last_index) as kept,
    ):
        packed_hidden_states(base.model, batch)
    states = torch.stack([kept[i].mean(0) for i in head.layers])
    return [read[name] for name in names], [written[name] for name in names], states


def _find_factors(
    head: DeltaHead, read: list[Tensor], written: list[Tensor], values: Tensor, generator: torch.Generator
) -> list[tuple[Tensor, Tensor]]:
    """(right, left) of each module, (in, k) and (out, k), with orthonormal columns.

    An input is weighted by the size of the gradients at its token, and a gradient by the size of the input there.
    """
    k = head.config.sketch_size
    rows: list[list[Tensor]] = [[] for _ in read]
    weights = [torch.zeros(len(x)) for x in read]
    for grads in _output_gradients(values, written):
        for i, grad in enumerate(grads):
            # random mixtures of all tokens' gradients keep their span in few rows: (4 k, tokens) @ (tokens, out)
            mixing = torch.randn(_KEPT_ROWS * k, len(grad), generator=generator)
            rows[i].append((mixing * read[i].norm(dim=1)) @ grad)
            weights[i] += grad.square().sum(1)
    return [
        (
            _main_directions(weight.sqrt()[:, None] * x, k, generator).t(),
            _main_directions(torch.cat(gathered), k, generator).t(),
        )
        for x, weight, gathered in zip(read, weights, rows, strict=True)
    ]


def _cores(factors: list[tuple[Tensor, Tensor]], read: list[Tensor], grads: list[Tensor]) -> Tensor:
    """(modules, k * k): derivative of one direction of the deltas with respect to each entry of each sketch."""
    entries = [(grad @ left).t() @ (x @ right) for (right, left), x, grad in zip(factors, read, grads, strict=True)]
    return torch.stack(entries).flatten(1)


def _output_gradients(values: Tensor, written: list[Tensor]) -> Iterator[list[Tensor]]:
    """For each value, its gradients with respect to the module outputs, (tokens, out) each."""
    for value in values:
        # modules after the last of the layers have no gradient: zeros in its place
        grads = torch.autograd.grad(value, written, retain_graph=True, materialize_grads=True)
        yield [grad[0] for grad in grads]


def _main_directions(rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Orthonormal directions (count, size): a basis of the principal ones of `rows` (n, size), then random ones.

    By subspace iteration: most rows of a last layer are zero, and eigensolvers may fail on such matrices.
    """
    rows = rows[rows.abs().amax(dim=1) > 0]
    known = min(count, len(rows))
    basis = torch.randn(rows.shape[1], known, generator=generator)
    if known:
        rows = rows / rows.abs().max()  # keeps squares of tiny gradients in the range of float32
    for _ in range(_ITERATIONS if known else 0):
        basis = torch.linalg.qr(rows.t() @ (rows @ basis))[0]
    filling = torch.randn(rows.shape[1], count - known, generator=generator)
    directions: Tensor = torch.linalg.qr(torch.cat([basis, filling], dim=1))[0].t()
    return directions.contiguous()


@contextmanager
def _traced(model: nn.Module, names: Sequence[str]) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """Inside, collects the inputs of the named modules, detached, and their outputs, with graph.

    The base is frozen, so a hook starts the graph at the embeddings.
    """
    read: dict[str, Tensor] = {}
    written: dict[str, Tensor] = {}

    def trace(name: str) -> RemovableHandle:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            read[name], written[name] = args[0].detach()[0], output

        return model.get_submodule(name).register_forward_hook(hook)

    def start(module: nn.Module, args: object, output: Tensor) -> Tensor:
        return output.detach().requires_grad_()

    handles = [trace(name) for name in names]
    handles.append(model.get_submodule("model.embed_tokens").register_forward_hook(start))
    try:
        yield read, written
    finally:
        for handle in handles:
            handle.remove()
