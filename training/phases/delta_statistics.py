"""Statistics of deltas and weights: distances, silhouette by family, a two-dimensional map, and norms.

The flattened weights of many adapters do not fit in memory. Only their inner products are needed, so adapters are read
block by block.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.manifold import TSNE
from sklearn.metrics import silhouette_score
from torch import Tensor

from llgbm.dataset import RealAdapterDataset
from llgbm.errors import AdapterMismatchError
from llgbm.lora import LoRAWeights

_BLOCK = 8
"""Adapters per block; two blocks are in memory at a time."""


class WeightGrams(NamedTuple):
    """Inner products between adapters, (n, n) float64: of the flattened A and B, and of the products BA."""

    flat: Tensor
    product: Tensor


def weight_grams(adapters: RealAdapterDataset) -> WeightGrams:
    """Inner products of all pairs.

    Raises:
        AdapterMismatchError: the adapters differ in rank or modules, so their flattened weights cannot be compared.
    """
    count = len(adapters)
    flat, product = torch.zeros(count, count, dtype=torch.float64), torch.zeros(count, count, dtype=torch.float64)
    starts = range(0, count, _BLOCK)
    for i in starts:
        mine = [adapters[k] for k in range(i, min(i + _BLOCK, count))]
        for j in starts[: i // _BLOCK + 1]:
            others = mine if i == j else [adapters[k] for k in range(j, min(j + _BLOCK, count))]
            flat_block, product_block = _block(mine, others)
            for whole, block in ((flat, flat_block), (product, product_block)):
                whole[i : i + len(mine), j : j + len(others)] = block
                whole[j : j + len(others), i : i + len(mine)] = block.t()
    return WeightGrams(flat, product)


def cosine_distances(gram: Tensor) -> NDArray[np.float64]:
    """1 - cosine of all pairs, (n, n), from their inner products; a zero vector has distance 1 to all others."""
    size = gram.diagonal().clamp_min(0).sqrt().clamp_min(torch.finfo(torch.float64).tiny)
    distances = (1 - gram / size[:, None] / size[None, :]).clamp(0, 2)
    distances.fill_diagonal_(0)
    result: NDArray[np.float64] = distances.numpy()
    return result


def delta_distances(deltas: Tensor) -> NDArray[np.float64]:
    """1 - cosine of all pairs, (n, n), of the flattened mean deltas (n, layers, hidden)."""
    flat = deltas.flatten(1).double()
    return cosine_distances(flat @ flat.t())


def silhouette(distances: NDArray[np.float64], labels: Sequence[str]) -> float | None:
    """Mean silhouette (Rousseeuw 1987), -1 to 1; None if undefined: a single family, or one adapter in each family."""
    if not 2 <= len(set(labels)) < len(labels):
        return None
    return float(silhouette_score(distances, np.array(labels), metric="precomputed"))


def tsne(distances: NDArray[np.float64], *, seed: int) -> list[list[float]] | None:
    """Coordinates (n, 2) by t-SNE (van der Maaten and Hinton 2008); None for fewer than four points."""
    count = len(distances)
    if count < 4:
        return None
    settings = TSNE(metric="precomputed", init="random", perplexity=min(30.0, (count - 1) / 3), random_state=seed)
    places: list[list[float]] = np.round(settings.fit_transform(distances), 4).tolist()
    return places


def norm_map(adapters: RealAdapterDataset) -> dict[str, dict[str, float]]:
    """Target module -> layer -> Frobenius norm of BA, averaged over the adapters that have the module."""
    sums: dict[tuple[str, int], list[float]] = defaultdict(list)
    for adapter in adapters:
        norms = adapter.product_norms()
        for module in adapter.spec.modules:
            sums[module.target, module.layer].append(norms[module.name])
    result: dict[str, dict[str, float]] = {}
    for (target, layer), values in sorted(sums.items(), key=lambda item: item[0][1]):
        result.setdefault(target, {})[str(layer)] = float(np.mean(values))
    return result


def _block(mine: Sequence[LoRAWeights], others: Sequence[LoRAWeights]) -> tuple[Tensor, Tensor]:
    spec = mine[0].spec
    for adapter in (*mine, *others):
        if adapter.spec != spec:
            raise AdapterMismatchError(
                f"adapters of rank {spec.rank} with {len(spec.modules)} modules and of rank {adapter.spec.rank} with "
                f"{len(adapter.spec.modules)} do not compare as flattened weights; leave one kind out"
            )
    # Neither BA nor a flattened adapter is built: <BA, B'A'> = sum((B^T B') * (A A'^T)), which needs only r x r
    # matrices, and the inner product of flattened A is the trace of A A'^T. gram_a and gram_b are (n, r, n', r).
    rank, shape = spec.rank, (len(mine), spec.rank, len(others), spec.rank)
    flat = torch.zeros(len(mine), len(others), dtype=torch.float64)
    product = torch.zeros_like(flat)
    for name in spec.names:
        gram_a = (
            (torch.cat([w.a[name] for w in mine]) @ torch.cat([w.a[name] for w in others]).t()).double().view(shape)
        )
        left = torch.cat([w.b[name].t() for w in mine])
        gram_b = (left @ torch.cat([w.b[name] for w in others], dim=1)).double().view(shape)
        product += spec.scaling**2 * (gram_a * gram_b).sum((1, 3))
        same = torch.arange(rank)
        flat += gram_a[:, same, :, same].sum(0) + gram_b[:, same, :, same].sum(0)
    return flat, product
