"""DecodePass: one token of every row through a Qwen2 model, in few operations.

For a single token, most of the time of the model's own forward pass goes into small operations: keys and values
repeated for every head, rotary embeddings in five steps, norms in Python, a module call for each Linear. Here Linears
with the same input are one product, adapters are added to its whole output, and the query heads of a group attend as
several queries of one head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llgbm.decoding.kv_cache import RowCache
from llgbm.decoding.stacked_lora import GroupProducts, RowAdapters
from llgbm.errors import AdapterMismatchError, ConfigError
from llgbm.linears.linear_group import LinearGroup

_GROUPS = 4


class _Norm(NamedTuple):
    weight: Tensor
    epsilon: Tensor
    """(1,) float32."""


class _Layer(NamedTuple):
    before_attention: _Norm
    attention_in: LinearGroup
    attention_out: LinearGroup
    before_mlp: _Norm
    mlp_in: LinearGroup
    activation: nn.Module
    mlp_out: LinearGroup
    scale: float
    """Of the attention's products."""


class DecodePass:
    """One step of a transformers Qwen2 causal LM, equal to its own forward pass up to rounding.

    The Linears are those that the model has now: replace them before, not afterwards.

    Args:
        model: the causal LM.
        compiled: fuse the small operations with torch.compile. It pays on a GPU, where each one is a kernel launch.

    Attributes:
        groups: the Linears of all layers, in the order of their products.

    Raises:
        ConfigError: some layers attend to a sliding window, which the cache does not support.
    """

    def __init__(self, model: nn.Module, *, compiled: bool = False) -> None:
        config: Any = model.config
        if any(kind != "full_attention" for kind in config.layer_types):
            raise ConfigError("this model attends to a sliding window in some layers; only full attention is supported")
        decoder: Any = model.get_submodule("model")
        self._embed, self._rotary = decoder.embed_tokens, decoder.rotary_emb
        self._layers = [_layer(layer, f"model.layers.{number}") for number, layer in enumerate(decoder.layers)]
        self._last_norm = _norm_of(decoder.norm)
        self._heads: int = config.num_attention_heads
        self._kv_heads: int = config.num_key_value_heads
        self._norm = torch.compile(_norm, dynamic=True) if compiled else _norm
        self._rotate = torch.compile(_rotate, dynamic=True) if compiled else _rotate
        self.groups: list[LinearGroup] = [
            group for x in self._layers for group in (x.attention_in, x.attention_out, x.mlp_in, x.mlp_out)
        ]

    def __call__(
        self, ids: Tensor, positions: Tensor, mask: Tensor | None, cache: RowCache, adapters: RowAdapters | None = None
    ) -> Tensor:
        """Last hidden states (rows, hidden) after the final norm.

        Args:
            ids: (rows,) int64, the new token of each row.
            positions: (rows,) int64, its position in the row.
            mask: from `cache.start_step`.
            cache: receives the new keys and values.
            adapters: of the rows, from a `StackedLoRA` of `groups`.

        Raises:
            AdapterMismatchError: the adapters are those of another number of rows.
        """
        rows = len(ids)
        if adapters is not None and adapters.rows != rows:
            raise AdapterMismatchError(f"adapters were given for {adapters.rows} rows, not for {rows}")
        products: Sequence[GroupProducts | None] = adapters.products if adapters else [None] * len(self.groups)
        hidden: Tensor = self._embed(ids)  # (rows, hidden): no dimension of tokens anywhere
        cos, sin = self._rotations(hidden, positions)
        for number, layer in enumerate(self._layers):
            own = products[_GROUPS * number : _GROUPS * (number + 1)]
            x = self._norm(hidden, layer.before_attention)
            # (rows, heads + 2 * kv_heads, head_dim): queries, keys and values, one head after the other
            states = self._rotate(_product(layer.attention_in, x, own[0]).view(cos.shape), cos, sin)
            # (rows, kv_heads, longest, head_dim) each
            keys, values = cache.update(states[:, self._heads :], number)
            # (rows, kv_heads, heads / kv_heads, head_dim): the query heads of one key head, as its queries
            queries = states[:, : self._heads].view(rows, self._kv_heads, -1, states.shape[-1])
            out = F.scaled_dot_product_attention(queries, keys, values, mask, scale=layer.scale)
            _add_product(hidden, layer.attention_out, out.reshape(rows, -1), own[1])
            x = self._norm(hidden, layer.before_mlp)
            gate, up = _product(layer.mlp_in, x, own[2]).chunk(2, dim=-1)
            _add_product(hidden, layer.mlp_out, layer.activation(gate) * up, own[3])
        return self._norm(hidden, self._last_norm)

    def _rotations(self, hidden: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Factors (rows, heads + 2 * kv_heads, head_dim) of all states; values are not rotated, so theirs are 1, 0."""
        cos, sin = self._rotary(hidden, positions[:, None])  # (rows, 1, head_dim) each
        # Rotation is x cos + [-x2, x1] sin for halves x1, x2. With the minus sign in sin it is x cos + roll(x) sin.
        half = sin.shape[-1] // 2
        signed = torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)
        rotated, kept = self._heads + self._kv_heads, self._kv_heads
        return (
            torch.cat([cos.expand(-1, rotated, -1), torch.ones_like(cos).expand(-1, kept, -1)], dim=1),
            torch.cat([signed.expand(-1, rotated, -1), torch.zeros_like(sin).expand(-1, kept, -1)], dim=1),
        )


def _layer(layer: Any, name: str) -> _Layer:
    def group(block: str, *linears: str) -> LinearGroup:
        parent = getattr(layer, block)
        return LinearGroup({f"{name}.{block}.{linear}": getattr(parent, linear) for linear in linears})

    return _Layer(
        before_attention=_norm_of(layer.input_layernorm),
        attention_in=group("self_attn", "q_proj", "k_proj", "v_proj"),
        attention_out=group("self_attn", "o_proj"),
        before_mlp=_norm_of(layer.post_attention_layernorm),
        mlp_in=group("mlp", "gate_proj", "up_proj"),
        activation=layer.mlp.act_fn,
        mlp_out=group("mlp", "down_proj"),
        scale=layer.self_attn.scaling,
    )


def _norm_of(norm: Any) -> _Norm:
    return _Norm(norm.weight, norm.weight.new_full((1,), norm.variance_epsilon, dtype=torch.float32))


def _product(group: LinearGroup, x: Tensor, adapters: GroupProducts | None) -> Tensor:
    outputs = group(x)
    if adapters is not None:
        adapters(x, outputs)
    return outputs


def _add_product(total: Tensor, group: LinearGroup, x: Tensor, adapters: GroupProducts | None) -> None:
    group.add_to(total, x)
    if adapters is not None:
        adapters(x, total)


def _norm(x: Tensor, norm: _Norm) -> Tensor:
    """RMS norm of (rows, hidden) in half the operations that F.rms_norm takes on a CPU."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)  # (rows, 1)
    scale = torch.addcmul(norm.epsilon, length, length, value=1 / x.shape[-1]).rsqrt_()
    return (x * scale).to(x.dtype) * norm.weight


def _rotate(x: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
    """Rotary position embedding of (rows, heads, head_dim); the sign of the first half is in `signed_sin`."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), signed_sin)
