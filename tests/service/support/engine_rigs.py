"""The engines of the common test suite, each with a base, two adapters and the expected answers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from llgbm.adapters.peft_io import content_digest
from llgbm.base import Base, load_base
from llgbm.chat import prompt_ids
from llgbm.config import LoRASpec
from llgbm.decoding.decoder import Decoder, DecodeRequest, Step, generate
from llgbm.decoding.sampling import SamplingParams
from llgbm.lora import LoRAWeights
from service.adapters.files import AdapterFiles
from service.adapters.records import AdapterRecord
from service.engine.interface import DecodingEngine, EngineLimits, TokenStream
from service.engine.torch_engine import Engine
from service.engine.vllm_engine import VLLMEngine
from service.observability.metrics import Metrics
from tests.service.support.fake_vllm import FakeVLLM
from tests.service.support.harness import make_settings

FRENCH, PLURAL = "lora-" + "a" * 24, "lora-" + "b" * 24


async def unverified(_: str) -> None:
    """The check of an adapter's files for a vLLM engine; it does nothing."""


@dataclass
class Rig:
    """An engine with its rows.

    Attributes:
        adapters: by id; also in the store that servers read.
        mixes: whether rows of the plain base may share a batch with rows of adapters.
    """

    base: Base
    adapters: dict[str, LoRAWeights]
    open_engine: Callable[[int, int, Metrics], AsyncIterator[DecodingEngine]]
    mixes: bool = True

    @asynccontextmanager
    async def running(self, *, max_batch: int = 8, max_queue: int = 8) -> AsyncIterator[tuple[DecodingEngine, Metrics]]:
        metrics = Metrics()
        async with asynccontextmanager(self.open_engine)(max_batch, max_queue, metrics) as engine:
            yield engine, metrics

    def prompt(self, text: str = "cheese") -> tuple[int, ...]:
        return prompt_ids(self.base.tokenizer, [{"role": "user", "content": text}])

    def row(self, length: int = 6, adapter: str | None = None, text: str = "cheese", **params: object) -> DecodeRequest:
        """A greedy row that makes `length` tokens without a stop token."""
        sampling = SamplingParams(max_tokens=length, stop_token_ids=())
        weights = None if adapter is None else self.adapters[adapter]
        return DecodeRequest(self.prompt(text), weights, replace(sampling, **params))  # type: ignore[arg-type]

    def expected(self, row: DecodeRequest) -> list[int]:
        """The tokens of the library's decoder for a row."""
        return generate(self.base, [row.prompt], [row.adapter], row.params)[0]


async def ask(
    engine: DecodingEngine, rows: Sequence[DecodeRequest], names: Sequence[str | None], timeout: float = 120
) -> list[list[Step]]:
    return [[step async for step in stream] for stream in await engine.submit(rows, names, timeout=timeout)]


async def tokens_of(stream: TokenStream) -> list[int]:
    return [step.token async for step in stream]


def torch_rig(base: Base, adapters: dict[str, LoRAWeights]) -> Rig:
    """The torch engine."""

    async def opened(max_batch: int, max_queue: int, metrics: Metrics) -> AsyncIterator[DecodingEngine]:
        engine = Engine(EngineLimits(max_batch, 10**9, max_queue, max_jobs=2), metrics)
        engine.start()
        engine.attach(lambda: Decoder(base, prefill_tokens=16))  # so that prompts take several turns
        yield engine
        await engine.stop()

    return Rig(base, adapters, opened)


def vllm_rig(base: Base, adapters: dict[str, LoRAWeights], url: str, folder: Path) -> Rig:
    """The vLLM engine with a server at `url` and a store in `folder`."""
    store(folder / "store", adapters, base)

    async def opened(max_batch: int, max_queue: int, metrics: Metrics) -> AsyncIterator[DecodingEngine]:
        settings = make_settings(folder, engine="vllm", vllm_url=url, max_batch=max_batch, max_queue=max_queue)
        engine = VLLMEngine(settings, metrics, unverified)
        await engine.start()
        yield engine
        await engine.stop()

    return Rig(base, adapters, opened)


def store(folder: Path, adapters: dict[str, LoRAWeights], base: Base) -> None:
    """Write adapters into a store under their ids."""
    files = AdapterFiles(folder)
    for identity, weights in adapters.items():
        spec: LoRASpec = weights.spec
        record = AdapterRecord(
            id=identity,
            digest=content_digest(weights),
            base=base.spec.base_id,
            rank=spec.rank,
            alpha=spec.alpha,
            target_modules=spec.target_modules,
            num_parameters=spec.num_parameters,
            created=0,
            source="loaded",
        )
        files.write(weights, record)


def fake_for(base_path: Path) -> FakeVLLM:
    """A fake server with its own base, because a model can be used by one thread only."""
    base = load_base(base_path)
    return FakeVLLM(base.spec.base_id, lambda: Decoder(base), base.tokenizer.decode)
