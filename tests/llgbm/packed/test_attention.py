import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.models.qwen2.modeling_qwen2 import apply_rotary_pos_emb

from llgbm.packed.attention import rotated_attention

HEADS, KV_HEADS, D = 4, 2, 6
LENGTHS = (3, 1, 5)
TOKENS = sum(LENGTHS)


def inputs(dtype: torch.dtype) -> tuple[list[Tensor], Tensor, Tensor, list[Tensor]]:
    """Query, key and value (1, T, heads D), cos and sin (T, D), and a causal mask for each span."""
    draw = torch.Generator().manual_seed(0)
    states = [torch.randn(1, TOKENS, n * D, dtype=dtype, generator=draw) for n in (HEADS, KV_HEADS, KV_HEADS)]
    angles = torch.randn(TOKENS, D // 2, dtype=torch.float64, generator=draw).repeat(1, 2)
    masks = [torch.full((n, n), float("-inf")).triu(1) for n in LENGTHS]
    return [t.requires_grad_() for t in states], angles.cos().to(dtype), angles.sin().to(dtype), masks


def one_by_one(states: list[Tensor], cos: Tensor, sin: Tensor, masks: list[Tensor], scale: float) -> Tensor:
    """The same by transformers' rotation and torch's attention, (1, T, heads D)."""
    q, k, v = (t.view(1, TOKENS, -1, D).transpose(1, 2) for t in states)
    q, k = apply_rotary_pos_emb(q, k, cos[None], sin[None])
    parts = [
        F.scaled_dot_product_attention(own_q, own_k, own_v, mask.to(q.dtype), scale=scale, enable_gqa=True)
        for own_q, own_k, own_v, mask in zip(*(t.split(LENGTHS, 2) for t in (q, k, v)), masks, strict=True)
    ]
    return torch.cat(parts, dim=2).transpose(1, 2).reshape(1, TOKENS, -1)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_spans_attend_as_each_one_alone(dtype: torch.dtype, tolerance: float) -> None:
    states, cos, sin, masks = inputs(dtype)
    expected = one_by_one(states, cos, sin, masks, 0.3)
    query, key, value = states
    found = rotated_attention(query, key, value, cos, sin, masks, 0.3)
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)
    gradient = torch.randn(found.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    wanted = torch.autograd.grad(expected, states, gradient)
    for mine, other in zip(torch.autograd.grad(found, states, gradient), wanted, strict=True):
        assert mine.dtype == dtype
        torch.testing.assert_close(mine, other, atol=tolerance * float(other.abs().max()), rtol=0)


def test_gradients_are_those_that_numbers_give() -> None:
    states, cos, sin, masks = inputs(torch.float64)
    assert torch.autograd.gradcheck(lambda q, k, v: rotated_attention(q, k, v, cos, sin, masks, 0.3), states)
