"""The service with tiny models, and applications with the real decoder and with a dummy one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from llgbm.base import Base
from llgbm.checkpoint import load_generator
from llgbm.decoding.decoder import Decoder, DecodeRequest
from llgbm.prompting import AdapterMaker, AdapterRequest
from service.models.loading import LoadModels, Models, Progress, embedding_cache
from service.observability.metrics import Metrics
from service.settings import DEFAULT_CHECKPOINT, Settings
from tests.conftest import find_vllm
from tests.service.support.dummy_decoder import DummyDecoder
from tests.service.support.engine_rigs import FRENCH, PLURAL
from tests.service.support.harness import Serving, make_settings, running
from tests.service.support.real_vllm import RealVLLM
from tests.service.support.real_vllm import real_vllm as start_vllm
from tests.service.support.redis_server import RedisServer

# fixture that starts a tool -> marker that tests with this fixture get
MARKER_OF_FIXTURE = {"redis_server": "redis", "browser": "browser"}


def pytest_itemcollected(item: pytest.Item) -> None:
    for fixture in MARKER_OF_FIXTURE.keys() & set(getattr(item, "fixturenames", ())):
        item.add_marker(MARKER_OF_FIXTURE[fixture])


@pytest.fixture(scope="session")
def real_vllm(
    tmp_path_factory: pytest.TempPathFactory, real_base: Base, real_base_path: Path, real_encoder_path: Path
) -> Iterator[RealVLLM]:
    """A real vLLM server with two adapters of the shipped generator, for tests marked `real` and `vllm`."""
    python = find_vllm()
    assert python is not None
    maker = AdapterMaker(shipped := load_generator(DEFAULT_CHECKPOINT), shipped.text_encoder(real_encoder_path))
    requests = [AdapterRequest((text,)) for text in ("Translate the English word to French.", "Write the plural.")]
    adapters = {name: made.weights for name, made in zip((FRENCH, PLURAL), maker.make(requests), strict=True)}
    log = tmp_path_factory.mktemp("vllm") / "log"
    with start_vllm(python, real_base_path, real_base.spec.base_id, log) as url:
        yield RealVLLM(url, real_base, adapters)


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return make_settings(tmp_path)


@pytest.fixture
def dummy(tiny_base: Base) -> DummyDecoder:
    """Answers "plain answer" without an adapter and "adapted answer" with one, one token per character."""

    def script(row: DecodeRequest) -> Sequence[int]:
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
def serving(settings: Settings, load_dummy: LoadModels) -> Serving:
    """Runs an application with the dummy decoder and the given settings."""
    return lambda **values: running(settings.model_copy(update=values), load_dummy)


@pytest.fixture
async def dummy_app(settings: Settings, load_dummy: LoadModels) -> AsyncIterator[tuple[FastAPI, httpx.AsyncClient]]:
    """An application with the dummy decoder."""
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
