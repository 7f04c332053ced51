"""DecodePass: one token of every row through a Qwen2 model, with what is around its Linears made lean.

A single token is so little work that most of the time of the model's own forward pass goes into small
operations: keys and values repeated for every head, rotary embeddings in five steps, norms in Python. Here
grouped heads attend as several queries of one head, and each step is the fewest operations. The Linears are
called as modules, so hooks and every form of storage work as in the model's own pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llgbm.decoding.kv_cache import RowCache
from llgbm.errors import ConfigError


class DecodePass:
    """One step of a transformers Qwen2 causal LM. The numbers are those of its own forward pass, to rounding.

    Args:
        model: the causal LM.
        compiled: let torch.compile fuse the small operations. It pays on a GPU, where each is a kernel to launch.

    Raises:
        ConfigError: some layers attend to a sliding window, which the cache does not do.
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
            positions: (rows,) int64, its place in the row.
            mask: from `cache.start_step`.
            cache: gets the new keys and values.
        """
        hidden: Tensor = self._decoder.embed_tokens(ids)
        cos, sin = self._decoder.rotary_emb(hidden, positions[:, None])  # (rows, 1, head_dim) each
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
        query = self._rotate(attention.q_proj(x).view(rows, -1, size), cos, sin)
        key = self._rotate(attention.k_proj(x).view(rows, -1, size), cos, sin)
        value = attention.v_proj(x).view(rows, -1, size)
        keys, values = cache.update(key[:, :, None], value[:, :, None], attention.layer_idx)
        grouped = query.view(rows, keys.shape[1], -1, size)  # the query heads of one key head, as its queries
        out = F.scaled_dot_product_attention(grouped, keys, values, mask, scale=attention.scaling)
        projected: Tensor = attention.o_proj(out.reshape(rows, -1))
        return projected


def _norm(x: Tensor, norm: Any) -> Tensor:
    return F.rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon)


def _rotate(x: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
    """Rotary position embedding of (rows, heads, head_dim)."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), signed_sin)
