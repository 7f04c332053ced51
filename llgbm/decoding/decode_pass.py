"""DecodePass: one token of every row through a Qwen2 model, with few operations around its Linears.

For a single token, most of the time of the model's own forward pass goes into small operations: keys and values
repeated for every head, rotary embeddings in five steps, norms in Python. Here the query heads of a group attend as
several queries of one head, and each step takes as few operations as possible. The Linears are called as modules, so
hooks and all storages work as in the model's own pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llgbm.decoding.kv_cache import RowCache
from llgbm.errors import ConfigError


class DecodePass:
    """One step of a transformers Qwen2 causal LM, equal to its own forward pass up to rounding.

    Args:
        model: the causal LM.
        compiled: fuse the small operations with torch.compile. It pays on a GPU, where each one is a kernel launch.

    Raises:
        ConfigError: some layers attend to a sliding window, which the cache does not support.
    """

    def __init__(self, model: nn.Module, *, compiled: bool = False) -> None:
        config: Any = model.config
        if any(kind != "full_attention" for kind in config.layer_types):
            raise ConfigError("this model attends to a sliding window in some layers; only full attention is supported")
        self._decoder: Any = model.get_submodule("model")
        self._norm = torch.compile(_norm, dynamic=True) if compiled else _norm
        self._rotate = torch.compile(_rotate, dynamic=True) if compiled else _rotate

    def __call__(self, ids: Tensor, positions: Tensor, mask: Tensor, cache: RowCache) -> Tensor:
        """Last hidden states (rows, hidden) after the final norm.

        Args:
            ids: (rows,) int64, the new token of each row.
            positions: (rows,) int64, its position in the row.
            mask: (rows, 1, 1, longest) from `cache.start_step`.
            cache: receives the new keys and values.
        """
        hidden: Tensor = self._decoder.embed_tokens(ids)  # (rows, hidden): no dimension of tokens anywhere
        cos, sin = self._decoder.rotary_emb(hidden, positions[:, None])  # (rows, 1, head_dim) each
        # Rotation is x cos + [-x2, x1] sin for halves x1, x2. With the minus sign in sin it is x cos + roll(x) sin.
        half = sin.shape[-1] // 2
        signed_sin = torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)
        for layer in self._decoder.layers:
            attended = self._attend(
                layer.self_attn, self._norm(hidden, layer.input_layernorm), cos, signed_sin, mask, cache
            )
            hidden = hidden + attended
            hidden = hidden + layer.mlp(self._norm(hidden, layer.post_attention_layernorm))
        return self._norm(hidden, self._decoder.norm)

    def _attend(self, attention: Any, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, cache: RowCache) -> Tensor:
        rows, size = x.shape[0], attention.head_dim
        query = self._rotate(attention.q_proj(x).view(rows, -1, size), cos, sin)  # (rows, heads, head_dim)
        key = self._rotate(attention.k_proj(x).view(rows, -1, size), cos, sin)  # (rows, kv_heads, head_dim)
        value = attention.v_proj(x).view(rows, -1, size)
        # (rows, kv_heads, longest, head_dim) each
        keys, values = cache.update(key[:, :, None], value[:, :, None], attention.layer_idx)
        # (rows, kv_heads, heads / kv_heads, head_dim): the query heads of one key head, as its queries
        grouped = query.view(rows, keys.shape[1], -1, size)
        out = F.scaled_dot_product_attention(grouped, keys, values, mask, scale=attention.scaling)
        projected: Tensor = attention.o_proj(out.reshape(rows, -1))
        return projected


def _norm(x: Tensor, norm: Any) -> Tensor:
    return F.rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon)


def _rotate(x: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
    """Rotary position embedding of (rows, heads, head_dim); the sign of the first half is in `signed_sin`."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), signed_sin)
