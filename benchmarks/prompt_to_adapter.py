"""Prompt to adapter in memory: a text that was never encoded, and one whose embedding is cached."""

from __future__ import annotations

from itertools import count
from pathlib import Path

from benchmarks.measure import Result, interleaved, summary
from llgbm.checkpoint import load_generator
from llgbm.prompting import AdapterMaker, AdapterRequest
from llgbm.text_encoder import MemoryEmbeddingCache, PretrainedTextEncoder


def run(checkpoint: Path, *, n: int) -> list[Result]:
    encoder = PretrainedTextEncoder(cache=MemoryEmbeddingCache(10_000))
    maker = AdapterMaker(load_generator(checkpoint), encoder)
    numbers = count()
    known = AdapterRequest(("Translate the English word to French.",))

    def uncached() -> None:
        maker.make([AdapterRequest((f"Translate the English word number {next(numbers)} to French.",))])

    seconds = interleaved({"uncached": uncached, "cached": lambda: maker.make([known])}, n=n)
    return [
        summary("prompt to adapter, uncached text", seconds, lambda m: 1e3 * m["uncached"], unit="ms", higher=False),
        summary("prompt to adapter, cached text", seconds, lambda m: 1e3 * m["cached"], unit="ms", higher=False),
    ]
