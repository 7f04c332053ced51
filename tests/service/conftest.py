"""The tiny models behind the service, and applications with the real and with a dummy decoder."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import httpx
import pytest
import torch
from fastapi import FastAPI

from llgbm.base import Base
from llgbm.checkpoint import GeneratorManifest, TrainingTask, load_generator, save_generator
from llgbm.config import GeneratorConfig, lora_spec
from llgbm.decoding import Decoder, Row
from llgbm.generator import create_generator
from llgbm.prompting import AdapterMaker
from llgbm.text_encoder import PretrainedTextEncoder
from service.metrics import Metrics
from service.models import LoadModels, Models, Progress, embedding_cache
from service.settings import Settings
from tests.service.dummy_decoder import DummyDecoder
from tests.service.harness import make_settings, running


@pytest.fixture(scope="session")
def tiny_checkpoint_path(tmp_path_factory: pytest.TempPathFactory, tiny_base: Base, tiny_encoder_path: Path) -> Path:
    """A random generator for the tiny base whose adapters change the base's answers."""
    folder = tmp_path_factory.mktemp("tiny-generator")
    config = GeneratorConfig(basis_rank=4, hidden_size=32, num_blocks=1)
    generator = create_generator(tiny_base.spec, lora_spec("tiny"), config, seed=3)
    random = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for b0 in generator.b0.values():
            b0.normal_(std=0.4, generator=random)
        generator.heads.normal_(std=0.3, generator=random)
    descriptions = ("Translate the English word to French.", "Reverse the letters.")
    manifest = GeneratorManifest(
        base_id=tiny_base.spec.base_id,
        base_revision=tiny_base.revision,
        encoder_id=str(tiny_encoder_path),
        model=tiny_base.spec,
        lora=generator.lora,
        generator=config,
        tasks=tuple(TrainingTask(f"task_{i}", "test", "made", "CC0", (d,)) for i, d in enumerate(descriptions)),
        confidence={"similarity": [0.0, 1.0], "confidence": [0.0, 1.0], "threshold": 0.5},
    )
    encoder = PretrainedTextEncoder(tiny_encoder_path)
    save_generator(folder, generator, manifest, [encoder.encode([d]) for d in descriptions])
    return folder


@pytest.fixture(scope="session")
def tiny_maker(tiny_checkpoint_path: Path, tiny_encoder_path: Path) -> AdapterMaker:
    return AdapterMaker(load_generator(tiny_checkpoint_path), PretrainedTextEncoder(tiny_encoder_path))


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return make_settings(tmp_path)


@pytest.fixture
def dummy(tiny_base: Base) -> DummyDecoder:
    """Answers "plain answer" without an adapter and "adapted answer" with one, a character for a token."""

    def script(row: Row) -> Sequence[int]:
        text = "plain answer" if row.adapter is None else "adapted answer"
        ids = list(tiny_base.tokenizer(text, add_special_tokens=False)["input_ids"])
        return [*ids, tiny_base.tokenizer.convert_tokens_to_ids("<|im_end|>")]

    return DummyDecoder(script)


@pytest.fixture
def load_dummy(tiny_base: Base, tiny_maker: AdapterMaker, dummy: DummyDecoder) -> LoadModels:
    """Loads the tiny maker with the dummy decoder."""

    def load(settings: Settings, metrics: Metrics, progress: Progress) -> Models:
        return Models(tiny_base, tiny_maker, dummy.renewed, 4096, embedding_cache(settings, metrics))

    return load


@pytest.fixture
def load_tiny(tiny_base: Base, tiny_maker: AdapterMaker) -> LoadModels:
    """Loads the tiny maker with the real decoder on the tiny base."""

    def load(settings: Settings, metrics: Metrics, progress: Progress) -> Models:
        return Models(tiny_base, tiny_maker, lambda: Decoder(tiny_base), 4096, embedding_cache(settings, metrics))

    return load


@pytest.fixture
async def dummy_app(settings: Settings, load_dummy: LoadModels) -> AsyncIterator[tuple[FastAPI, httpx.AsyncClient]]:
    """An application that answers from the script."""
    async with running(settings, load_dummy) as pair:
        yield pair


@pytest.fixture
def client(dummy_app: tuple[FastAPI, httpx.AsyncClient]) -> httpx.AsyncClient:
    return dummy_app[1]


@pytest.fixture
async def tiny_app(settings: Settings, load_tiny: LoadModels) -> AsyncIterator[tuple[FastAPI, httpx.AsyncClient]]:
    """An application that decodes with the tiny base."""
    async with running(settings, load_tiny) as pair:
        yield pair
