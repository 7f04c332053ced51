from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from llgbm.adapters.index import AdapterEntry, AdapterPrompts
from llgbm.adapters.peft_io import save_peft
from llgbm.config import LoRASpec, lora_spec, model_spec
from llgbm.dataset import RealAdapterDataset
from llgbm.errors import AdapterMismatchError
from llgbm.lora import LoRAWeights
from tests.fixtures import random_lora
from training.phases.delta_statistics import cosine_distances, delta_distances, norm_map, silhouette, tsne, weight_grams

SPEC = lora_spec("tiny")


def dataset(folder: Path, adapters: list[LoRAWeights]) -> RealAdapterDataset:
    entries = []
    for i, weights in enumerate(adapters):
        save_peft(weights, folder / f"a{i}", base_id="b")
        entries.append(AdapterEntry(f"a{i}", "t", folder / f"a{i}", AdapterPrompts(("x",))))
    return RealAdapterDataset(entries)


def test_inner_products_are_those_of_the_dense_weights(tmp_path: Path) -> None:
    adapters = [random_lora(SPEC, seed) for seed in range(11)]  # more than one block
    flat = torch.stack([torch.cat([t.flatten() for t in w.tensors]) for w in adapters]).double()
    dense = torch.stack([torch.cat([w.delta_weight(n).flatten() for n in SPEC.names]) for w in adapters]).double()
    grams = weight_grams(dataset(tmp_path, adapters))
    assert_close(grams.flat, flat @ flat.t(), rtol=1e-4, atol=1e-3)
    assert_close(grams.product, dense @ dense.t(), rtol=1e-4, atol=1e-3)


def test_adapters_that_do_not_compare_are_refused(tmp_path: Path) -> None:
    other = LoRASpec.for_model(model_spec("tiny"), rank=2)
    with pytest.raises(AdapterMismatchError, match=r"rank 4 .* and of rank 2 .* do not compare"):
        weight_grams(dataset(tmp_path, [random_lora(SPEC, 0), random_lora(other, 1)]))


def test_distances_do_not_see_the_scale() -> None:
    vectors = torch.randn(5, 2, 8, generator=torch.Generator().manual_seed(0))
    scales = torch.tensor([1.0, 10.0, 0.1, 3.0, 100.0])[:, None, None]
    np.testing.assert_allclose(delta_distances(vectors), delta_distances(vectors * scales), atol=1e-6)
    assert np.diag(delta_distances(vectors)).max() == 0


def test_a_zero_vector_is_far_from_all() -> None:
    distances = cosine_distances(torch.tensor([[4.0, 0.0], [0.0, 0.0]], dtype=torch.float64))
    assert distances.tolist() == [[0.0, 1.0], [1.0, 0.0]]


def test_silhouette_is_high_for_clusters_and_low_for_shuffled_labels() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(3, 1, 16, generator=generator).repeat_interleave(6, 0)
    distances = delta_distances(centres + 0.1 * torch.randn(18, 1, 16, generator=generator))
    labels = [name for name in "abc" for _ in range(6)]
    together, apart = silhouette(distances, labels), silhouette(distances, labels[::3] * 3)
    assert together is not None
    assert apart is not None
    assert together > 0.8 > 0.2 > apart


@pytest.mark.parametrize("labels", [["a"] * 4, ["a", "b", "c", "d"]])
def test_silhouette_without_groups_has_no_value(labels: list[str]) -> None:
    assert silhouette(np.ones((4, 4)) - np.eye(4), labels) is None


def test_the_map_is_the_same_for_the_same_seed_and_needs_four_points() -> None:
    distances = delta_distances(torch.randn(6, 1, 8, generator=torch.Generator().manual_seed(1)))
    assert tsne(distances, seed=0) == tsne(distances, seed=0)
    assert tsne(distances[:3, :3], seed=0) is None


def test_norms_are_means_over_the_adapters_that_have_the_module(tmp_path: Path) -> None:
    one, half = random_lora(SPEC, 0), random_lora(SPEC, 0).scaled(0.5)
    few = random_lora(LoRASpec.for_model(model_spec("tiny"), rank=4, alpha=8.0, targets=["q_proj"], layers=[1]), 1)
    norms = norm_map(dataset(tmp_path, [one, half, few]))
    name = "model.layers.0.up_proj".replace("0.", "0.mlp.")
    assert norms["up_proj"]["0"] == pytest.approx(0.75 * one.product_norms()[name], rel=1e-5)
    q = "model.layers.1.self_attn.q_proj"
    expected = (1.5 * one.product_norms()[q] + few.product_norms()[q]) / 3
    assert norms["q_proj"]["1"] == pytest.approx(expected, rel=1e-5)
