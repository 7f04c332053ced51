"""The service with the tiny base behind a real server, and helpers of clients."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from llgbm.base import Base
from llgbm.decoding.decoder import Decoder
from llgbm.prompting import AdapterMaker
from service.models.loading import Models, Progress, embedding_cache
from service.observability.metrics import Metrics
from service.settings import Settings
from tests.service.support.harness import LiveServer, live, make_settings

BASE = "llgbm/tiny-random-qwen2"
CHAT = "/v1/chat/completions"
USER: list[Any] = [{"role": "user", "content": "cheese"}]


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory, tiny_base: Base, tiny_maker: AdapterMaker) -> Iterator[LiveServer]:
    def load(settings: Settings, metrics: Metrics, progress: Progress) -> Models:
        return Models(tiny_base, tiny_maker, lambda: Decoder(tiny_base), 4096, embedding_cache(settings, metrics))

    with live(make_settings(tmp_path_factory.mktemp("clients")), load) as served:
        yield served


@pytest.fixture
def client(server: LiveServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


@pytest.fixture(scope="package")
def french(server: LiveServer) -> str:
    """Id of an adapter with the name `french`."""
    body = {"prompt": "Translate the English word to French.", "name": "french"}
    identity: str = httpx.post(f"{server.url}/generate-adapter", json=body, timeout=60).json()["id"]
    return identity


def ask(client: httpx.Client, **body: Any) -> httpx.Response:
    """A greedy chat completion of eight tokens from the base, unless `body` says otherwise."""
    return client.post(CHAT, json={"model": BASE, "messages": USER, "max_tokens": 8, "temperature": 0, **body})


def text_of(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    text: str = answer.json()["choices"][0]["message"]["content"]
    return text


def refusal(answer: httpx.Response, status: int = 400) -> tuple[str | None, str]:
    """The field in a refusal, and its message."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    return error["param"], error["message"]
