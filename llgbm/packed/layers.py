"""The layers of Qwen2.5 on a packed row: transformers' own layers, with other attention and norms inside a context.

Their backward passes are written here. torch's own keep and convert float32 copies of every state, which takes longer
than the products of the adapters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from llgbm.packed.attention import rotated_attention


@contextmanager
def packed_layers(model: nn.Module) -> Iterator[None]:
    """Inside, a forward pass of `model` with `packed_masks` computes attention span by span."""
    changed: list[nn.Module] = []

    def replace(module: nn.Module, forward: Callable[..., object]) -> None:
        module.forward = partial(forward, module)
        changed.append(module)

    decoder = model.get_submodule("model")
    try:
        for layer in decoder.get_submodule("layers").children():
            replace(layer.get_submodule("self_attn"), _attention)
            replace(layer.get_submodule("input_layernorm"), _rms_norm)
            replace(layer.get_submodule("post_attention_layernorm"), _rms_norm)
        replace(decoder.get_submodule("norm"), _rms_norm)
        yield
    finally:
        for module in changed:
            del module.forward  # restores the method of the class


def _attention(
    module: Any,
    hidden_states: Tensor,
    position_embeddings: tuple[Tensor, Tensor],
    packed_masks: Sequence[Tensor],
    **_: object,
) -> tuple[Tensor, None]:
    """The forward pass of an attention module, on hidden_states (1, T, hidden)."""
    q, k, v = (linear(hidden_states) for linear in (module.q_proj, module.k_proj, module.v_proj))
    cos, sin = (table[0] for table in position_embeddings)  # (T, d) each
    attended = rotated_attention(q, k, v, cos, sin, packed_masks, module.scaling)
    return module.o_proj(attended), None


def _rms_norm(module: Any, x: Tensor) -> Tensor:
    result: Tensor = _RMSNorm.apply(x, module.weight, module.variance_epsilon)  # type: ignore[no-untyped-call]
    return result


class _RMSNorm(torch.autograd.Function):
    """y = w x / sqrt(mean(x^2) + eps) over the last dimension; w is frozen."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        states = x.to(torch.float32, copy=True)
        mean_square = torch.linalg.vector_norm(states, dim=-1, keepdim=True).square_().div_(x.shape[-1])
        scale = mean_square.add_(epsilon).rsqrt_()  # (..., 1)
        ctx.save_for_backward(x, weight, scale)
        return states.mul_(scale).to(x.dtype) * weight

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        x, weight, scale = ctx.saved_tensors
        # with g = w dy: dx = s g - x s^3 mean(x g)
        g, states = grad.float().mul_(weight), x.float()
        along = torch.linalg.vecdot(g, states)[..., None].mul_(scale.pow(3)).div_(x.shape[-1])
        return g.mul_(scale).addcmul_(states, along, value=-1).to(x.dtype), None, None
