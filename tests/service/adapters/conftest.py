"""Two machines that share a store; each module has its own `url`."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.adapters import shared_files
from service.adapters.shared_files import SharedFiles

Pair = tuple[SharedFiles, SharedFiles]


@pytest.fixture
def pair(url: str, tmp_path: Path) -> Pair:
    return SharedFiles(tmp_path / "one", url), SharedFiles(tmp_path / "two", url)


@pytest.fixture
def no_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Changes by other machines are visible immediately."""
    monkeypatch.setattr(shared_files, "FRESH_SECONDS", 0.0)
