"""The service with the tiny models behind a real server, and OpenAI's client."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from service.models.loading import load_models
from service.settings import Settings
from tests.service.support.harness import LiveServer, live, make_settings


@pytest.fixture
def job_settings(tmp_path: Path, tiny_base_path: Path, tiny_encoder_path: Path, tiny_checkpoint_path: Path) -> Settings:
    """Settings of an operator, so that the process of a job loads the same base."""
    return make_settings(
        tmp_path,
        base=str(tiny_base_path),
        text_encoder=str(tiny_encoder_path),
        checkpoint=tiny_checkpoint_path,
        threads=1,
        refine_threads=1,
        refine_storage="float32",  # exact, so that a result can be compared
    )


@pytest.fixture
def server(job_settings: Settings) -> Iterator[LiveServer]:
    with live(job_settings, load_models) as served:
        yield served


@pytest.fixture
def api(server: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client
