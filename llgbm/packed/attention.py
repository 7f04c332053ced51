"""Rotary attention of the spans of a packed row, each by itself: its cost is the sum of their squares.

torch's own backward pass of attention on a CPU is several times slower than these products.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def rotated_attention(
    query: Tensor, key: Tensor, value: Tensor, cos: Tensor, sin: Tensor, masks: Sequence[Tensor], scale: float
) -> Tensor:
    """Attention (1, T, heads d) with rotary position embedding.

    Args:
        query: (1, T, heads d).
        key: (1, T, kv_heads d).
        value: (1, T, kv_heads d).
        cos, sin: (T, d), of each token's position.
        masks: (n, n) float32 for each span of n tokens, in order: 0 where a token may attend, -inf elsewhere.
        scale: factor of the scores.
    """
    result: Tensor = _RotatedAttention.apply(query, key, value, cos, sin, masks, scale)  # type: ignore[no-untyped-call]
    return result


class _RotatedAttention(torch.autograd.Function):
    """The m = heads / kv_heads query heads that read the same keys stand under each other: products have n m rows."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cos: Tensor,
        sin: Tensor,
        masks: Sequence[Tensor],
        scale: float,
    ) -> Tensor:
        d = cos.shape[-1]
        signed_sin = torch.cat((-sin[:, : d // 2], sin[:, d // 2 :]), dim=-1)
        kv = key.shape[-1] // d
        q = _rotated(_by_key(query, kv, d), cos * scale, signed_sin * scale)  # (kv, T, m, d)
        k, v = _rotated(_by_key(key, kv, d), cos, signed_sin)[:, :, 0], _by_key(value, kv, d)[:, :, 0].contiguous()
        lengths, m = [len(mask) for mask in masks], q.shape[2]
        attended = torch.empty_like(q)
        of_spans = zip(
            _rows(q, lengths), k.split(lengths, 1), v.split(lengths, 1), _rows(attended, lengths), masks, strict=True
        )
        probabilities = []
        for own_q, own_k, own_v, out, mask in of_spans:
            n = len(mask)
            scores = torch.bmm(own_q, own_k.mT).view(kv, n, m, n)
            # float32 in the softmax, whatever the dtype of the states
            p = torch.add(mask[:, None], scores).softmax(-1).to(q.dtype).view(kv, n * m, n)
            out.copy_(torch.bmm(p, own_v))
            probabilities.append(p)
        ctx.scale = scale
        ctx.save_for_backward(q, k, v, cos, signed_sin, *probabilities)
        return _by_token(attended)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, cos, signed_sin, *probabilities = ctx.saved_tensors
        kv, _, _, d = q.shape
        lengths = [p.shape[2] for p in probabilities]
        grads = _by_key(grad, kv, d).contiguous()
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        of_spans = zip(
            *(_rows(t, lengths) for t in (q, grads, grad_q)),
            *(t.split(lengths, 1) for t in (k, v, grad_k, grad_v)),
            probabilities,
            strict=True,
        )
        for own_q, g, own_grad_q, own_k, own_v, own_grad_k, own_grad_v, p in of_spans:
            own_grad_v.copy_(torch.bmm(p.mT, g))
            # o = P v, P = softmax(q k^T): dS = P * (dP - rowsum(dP * P))
            ds = torch._softmax_backward_data(torch.bmm(g, own_v.mT), p, -1, p.dtype)
            own_grad_q.copy_(torch.bmm(ds, own_k))
            own_grad_k.copy_(torch.bmm(ds.mT, own_q))
        # a rotation's transpose is the rotation back
        query = _rotated(grad_q, cos * ctx.scale, signed_sin * -ctx.scale)
        key = _rotated(grad_k[:, :, None], cos, -signed_sin)
        return _by_token(query), _by_token(key), _by_token(grad_v[:, :, None]), None, None, None, None


def _rows(states: Tensor, lengths: Sequence[int]) -> Sequence[Tensor]:
    """(kv, T, m, d) -> (kv, n m, d) for each span of n tokens, views."""
    m = states.shape[2]
    return torch.split(states.flatten(1, 2), [n * m for n in lengths], 1)


def _by_key(states: Tensor, kv: int, d: int) -> Tensor:
    """(1, T, kv m d) -> (kv, T, m, d), a view."""
    return states.view(states.shape[1], kv, -1, d).transpose(0, 1)


def _by_token(states: Tensor) -> Tensor:
    """(kv, T, m, d) -> (1, T, kv m d)."""
    return states.transpose(0, 1).reshape(1, states.shape[1], -1)


def _rotated(x: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
    """Rotary position embedding of (kv, T, m, d), contiguous; the sign of the first half is in `signed_sin` (T, d)."""
    result = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    torch.mul(x, cos[:, None], out=result)
    return result.addcmul_(x.roll(x.shape[-1] // 2, -1), signed_sin[:, None])
