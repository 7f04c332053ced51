"""Activation checkpointing under FunctionalLoRA: less memory for one more forward pass of each layer.

A layer keeps only its input and runs again in the backward pass (Chen et al. 2016, arXiv 1604.06174). By then the
contexts of adapter and packed attention have ended, and without them the layer would give the plain base's gradients.
So the second run enters both contexts again, for that layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from llgbm.functional import FunctionalLoRA, PreparedLoRA
from llgbm.packed.layers import packed_layers


@contextmanager
def recomputed_layers(
    model: nn.Module, functional: FunctionalLoRA, prepared: PreparedLoRA, *, packed: bool
) -> Iterator[None]:
    """Inside, each decoder layer of a packed forward pass keeps only its input for the backward pass.

    Use it together with `functional.applied(prepared)`, and run the backward pass after both contexts.

    Args:
        prepared: the adapters of the forward pass, from `functional.prepare`.
        packed: whether the batch is one packed row.
    """
    layers = list(model.get_submodule("model.layers").children())
    for number, layer in enumerate(layers):
        prefix = f"model.layers.{number}."
        # only this layer's hooks: a context whose hooks do not all run raises
        own = PreparedLoRA({name: hook for name, hook in prepared.hooks.items() if name.startswith(prefix)})
        layer.forward = _checkpointed(layer.forward, lambda own=own: _second_pass(model, functional, own, packed))  # type: ignore[misc]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # restores the method of the class


def _checkpointed(
    forward: Callable[..., Tensor], again: Callable[[], AbstractContextManager[object]]
) -> Callable[..., Tensor]:
    def run(*args: Any, **kwargs: Any) -> Tensor:
        result: Tensor = checkpoint(
            forward,
            *args,
            use_reentrant=False,  # the reentrant form needs an input with gradient, and the first layer's has none
            preserve_rng_state=False,  # the frozen base draws no random numbers
            context_fn=lambda: (nullcontext(), again()),
            **kwargs,
        )
        return result

    return run


@contextmanager
def _second_pass(model: nn.Module, functional: FunctionalLoRA, own: PreparedLoRA, packed: bool) -> Iterator[None]:
    with ExitStack() as stack:
        if packed:
            stack.enter_context(packed_layers(model))
        stack.enter_context(functional.applied(own))
        yield
