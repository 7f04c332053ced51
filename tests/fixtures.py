"""The models that tests share: the tiny random ones, made once a session, and the real 0.5B base."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llgbm.base import Base, load_base
from llgbm.config import LoRASpec
from llgbm.lora import LoRAWeights
from llgbm.pretrained.tiny import build_tiny_base, build_tiny_encoder


@pytest.fixture(scope="session")
def tiny_base_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the tiny random Qwen2."""
    return build_tiny_base(tmp_path_factory.mktemp("tiny-base"))


@pytest.fixture(scope="session")
def tiny_base(tiny_base_path: Path) -> Base:
    """The tiny random Qwen2, float32. Shared: a test that changes the model loads its own."""
    return load_base(tiny_base_path)


@pytest.fixture(scope="session")
def tiny_encoder_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the tiny random text encoder."""
    return build_tiny_encoder(tmp_path_factory.mktemp("tiny-encoder"))


@pytest.fixture(scope="session")
def real_base(real_base_path: Path) -> Base:
    """The real 0.5B base, float32, for tests marked `real`."""
    return load_base(real_base_path)


def random_lora(spec: LoRASpec, seed: int, *, size: float = 1.0) -> LoRAWeights:
    """A LoRA of which every product `scaling * B @ A` has about `size` times the norm of a random module's
    weight.

    float32; the same for the same arguments.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(rows: int, columns: int, scale: float) -> torch.Tensor:
        return torch.randn(rows, columns, generator=generator) * scale

    a_scale = {m.name: m.in_features**-0.5 for m in spec.modules}
    b_scale = size * 0.3 / (spec.scaling * spec.rank**0.5)
    a = {m.name: draw(spec.rank, m.in_features, a_scale[m.name]) for m in spec.modules}
    b = {m.name: draw(m.out_features, spec.rank, b_scale) for m in spec.modules}
    return LoRAWeights(spec, a, b)
