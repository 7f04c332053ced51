"""The service with the tiny models in separate processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from llgbm.base import load_base
from llgbm.checkpoint import load_generator
from llgbm.decoding.decoder import Decoder
from llgbm.prompting import AdapterMaker
from service.app import create_app
from service.models.loading import LoadModels, Models, Progress, embedding_cache
from service.observability.metrics import Metrics
from service.settings import Settings
from tests.service.support.forkserver import CONTEXT
from tests.service.support.harness import free_port, make_settings, wait_until


def tiny_loader(base: Path, encoder: Path, checkpoint: Path) -> LoadModels:
    """Loads the tiny models from their folders, with the embedding cache of the settings."""

    def load(settings: Settings, metrics: Metrics, progress: Progress) -> Models:
        cache = embedding_cache(settings, metrics)
        maker = AdapterMaker(generator := load_generator(checkpoint), generator.text_encoder(encoder, cache=cache))
        tiny = load_base(base)
        return Models(tiny, maker, lambda: Decoder(tiny), 4096, cache)

    return load


class ForkedService:
    """A service with the store in `folder`.

    Args:
        models: folders of base, encoder and checkpoint.
        values: more settings.
    """

    def __init__(self, folder: Path, models: Sequence[Path], values: Mapping[str, Any] | None = None) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        arguments = (str(folder), [str(path) for path in models], self.port, dict(values or {}))
        self._process = CONTEXT.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def wait_ready(self) -> None:
        wait_until(self._answers, seconds=120)

    def _answers(self) -> bool:
        assert self._process.is_alive()
        try:
            return httpx.get(f"{self.url}/readyz", timeout=30).status_code == 200
        except httpx.TransportError:
            return False

    def kill(self) -> None:
        """Kill the process, if it runs."""
        self._process.kill()
        self._process.join()


def _serve(folder: str, models: Sequence[str], port: int, values: Mapping[str, Any]) -> None:
    base, encoder, checkpoint = map(Path, models)
    app = create_app(make_settings(Path(folder), threads=1, **values), load=tiny_loader(base, encoder, checkpoint))
    uvicorn.run(app, host="127.0.0.1", port=port, log_config=None, access_log=False)
