"""One service with the tiny models and one Chromium for all tests of the playground."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Page

from service.models.loading import LoadModels, Models, Progress, load_models
from service.observability.metrics import Metrics
from service.settings import Settings
from tests.service.playground.browser import Pace, PacedDecoder, chromium, playground
from tests.service.support.harness import LiveServer, live, make_settings


@pytest.fixture(scope="package")
def pace() -> Pace:
    return Pace()


@pytest.fixture(scope="package")
def load(tiny_checkpoint_path: Path, tiny_base_path: Path, tiny_encoder_path: Path, pace: Pace) -> LoadModels:
    """The service's own loading of the tiny models, with a decoder whose speed tests can change."""
    tiny = {
        "checkpoint": tiny_checkpoint_path,
        "base": str(tiny_base_path),
        "text_encoder": str(tiny_encoder_path),
    }

    def load_paced(settings: Settings, metrics: Metrics, progress: Progress) -> Models:
        models = load_models(settings.model_copy(update=tiny), metrics, progress)
        new_decoder = models.new_decoder
        assert new_decoder is not None
        return replace(models, new_decoder=lambda: PacedDecoder(new_decoder(), pace))

    return load_paced


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory, load: LoadModels) -> Iterator[LiveServer]:
    # float32, so that the snippet with PEFT gives the same answer
    settings = make_settings(tmp_path_factory.mktemp("playground"), max_prompt_chars=400, base_storage="float32")
    with live(settings, load) as served:
        yield served


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture
def page(browser: Browser, server: LiveServer, pace: Pace) -> Iterator[Page]:
    pace.pause, pace.fail_in = 0.0, None
    with playground(browser, server) as opened:
        yield opened


@pytest.fixture
def api(server: LiveServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client
