"""A workbench with tiny models, for tests of all benchmarks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.measuring.workbench import Workbench


@pytest.fixture(scope="session")
def bench(tiny_checkpoint_path: Path, tiny_base_path: Path, tiny_encoder_path: Path) -> Iterator[Workbench]:
    """A workbench with the tiny base, encoder and generator."""
    with Workbench(
        quick=True,
        checkpoint=tiny_checkpoint_path,
        base=str(tiny_base_path),
        text_encoder=str(tiny_encoder_path),
        peers={"vllm": Path("no-such-python"), "llama-cpp": Path("no-such-python")},
        threads=1,
    ) as bench:
        yield bench
