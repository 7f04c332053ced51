"""Models shared by the tests: tiny random ones, made once per session, and the real 0.5B base."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from torch import nn

from llgbm.base import Base, load_base
from llgbm.checkpoint import load_generator
from llgbm.config import LoRASpec
from llgbm.lora import LoRAWeights
from llgbm.pretrained.tiny import build_tiny_base, build_tiny_encoder
from llgbm.prompting import AdapterMaker
from llgbm.text_encoder import PretrainedTextEncoder
from tests.service.support.tiny_checkpoint import build_tiny_checkpoint

_Argument = TypeVar("_Argument")
_Result = TypeVar("_Result")


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
def encoder(tiny_encoder_path: Path) -> PretrainedTextEncoder:
    """The tiny random text encoder, loaded."""
    return PretrainedTextEncoder(tiny_encoder_path).load()


@pytest.fixture(scope="session")
def tiny_checkpoint_path(
    tmp_path_factory: pytest.TempPathFactory, tiny_base_path: Path, tiny_encoder_path: Path
) -> Path:
    """A random generator for the tiny base whose adapters change the base's answers."""
    return build_tiny_checkpoint(tmp_path_factory.mktemp("tiny-generator"), tiny_base_path, tiny_encoder_path)


@pytest.fixture(scope="session")
def tiny_maker(tiny_checkpoint_path: Path, tiny_encoder_path: Path) -> AdapterMaker:
    return AdapterMaker(checkpoint := load_generator(tiny_checkpoint_path), checkpoint.text_encoder(tiny_encoder_path))


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this project, built from the working tree."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(build, cwd=Path(__file__).resolve().parent.parent, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="session")
def real_base(real_base_path: Path) -> Base:
    """The real 0.5B base, float32, for tests marked `real`."""
    return load_base(real_base_path)


def linear(rows: int, columns: int, seed: int, *, bias: bool = True) -> nn.Linear:
    """A frozen random Linear with a weight (rows, columns)."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Linear(columns, rows, bias=bias).requires_grad_(False)


def same_weights(one: LoRAWeights, other: LoRAWeights) -> bool:
    """Whether two adapters are equal, bit by bit."""
    return one.spec == other.spec and all(map(torch.equal, one.tensors, other.tensors))


def in_threads(work: Callable[[_Argument], _Result], arguments: Iterable[_Argument]) -> list[_Result]:
    """The results of `work` for all arguments, each in a thread of its own; an error of a thread is raised here."""
    each = list(arguments)
    with ThreadPoolExecutor(len(each)) as pool:
        return list(pool.map(work, each))


def random_lora(spec: LoRASpec, seed: int, *, size: float = 1.0) -> LoRAWeights:
    """A random float32 LoRA; the same for the same arguments.

    Each product `scaling * B @ A` has about `size` times the norm of a random module's weight.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(rows: int, columns: int, scale: float) -> torch.Tensor:
        return torch.randn(rows, columns, generator=generator) * scale

    a_scale = {m.name: m.in_features**-0.5 for m in spec.modules}
    b_scale = size * 0.3 / (spec.scaling * spec.rank**0.5)
    a = {m.name: draw(spec.rank, m.in_features, a_scale[m.name]) for m in spec.modules}
    b = {m.name: draw(m.out_features, spec.rank, b_scale) for m in spec.modules}
    return LoRAWeights(spec, a, b)
