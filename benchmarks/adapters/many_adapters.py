"""Cost of a request, and memory of a process, with 100 and with 100,000 adapters in the store.

Nothing is decoded: the catalogue, the index and the adapters in memory are used as the routes use them. Every adapter
is complete and has a name. They have the same tensors, so that hard links can stand for most of the files; records and
names are their own. 50 adapters fit into memory, and 100 are requested. With TMPDIR=/dev/shm the store is in memory,
and a slow disk does not hide the cost of the code.
"""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import os
import random
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.measuring.measure import Result, result
from benchmarks.measuring.workbench import Workbench
from llgbm.adapters.peft_io import content_digest
from llgbm.config import LoRASpec, model_spec
from llgbm.lora import LoRAWeights
from service.adapters import index as adapter_index
from service.adapters.catalogue import AdapterCatalogue
from service.adapters.files import AdapterFiles
from service.adapters.index import AdapterIndex
from service.adapters.records import CONFIG_FILE, RECORD_FILE, WEIGHTS_FILE, AdapterRecord, new_record
from service.adapters.store import AdapterStore
from service.observability.metrics import Metrics

_BASE = model_spec("tiny")
_SPEC = LoRASpec.for_model(_BASE, rank=2, alpha=4.0)
_WRITTEN, _ASKED, _RESIDENT = 100, 100, 50
_CREATED = 1.7e9


@dataclass(frozen=True)
class _Measured:
    """Measurements of one store: milliseconds by request, seconds of the first scan, MB of growth of the process."""

    milliseconds: dict[str, list[float]]
    scan: float
    megabytes: float


def run(bench: Workbench) -> list[Result]:
    few, many = (100, 2_000) if bench.quick else (100, 100_000)
    measured = {}
    with tempfile.TemporaryDirectory(prefix="llgbm-bench-") as scratch:
        for size in (few, many):
            folder = Path(scratch) / str(size)
            _fill(folder / "store", size)
            # in a new process, so that its memory is for this store only
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                measured[size] = pool.apply(_measure, (folder, size, bench.times(100)))
    kinds = {
        "a page of 20 of all adapters": "page",
        "such a page while other processes add adapters and the store is scanned again and again": "changing",
        "one adapter by a name, with all its names": "one",
        "200 requests at once for 100 adapters by name, 50 in memory": "together",
    }
    results = [
        result(
            f"{title}: with {many:,} adapters in the store over {few}",
            {f"{size:,}": measured[size].milliseconds[kind] for size in (few, many)},
            lambda m: m[f"{many:,}"] / m[f"{few:,}"],
            arm_unit="ms",
            higher=False,
            target=1.5,
            note=f"The first scan of {many:,} took {measured[many].scan:.1f} s, in the background.",
        )
        for title, kind in kinds.items()
    ]
    results.append(
        result(
            f"memory of the store's parts, {many:,} adapters over {few}",
            {f"{size:,}": [measured[size].megabytes] for size in (few, many)},
            lambda m: m[f"{many:,}"] - m[f"{few:,}"],
            unit="MB",
            arm_unit="MB",
            higher=False,
            target=20,
            note="Largest resident memory after the first scan and all requests, less that before it.",
        )
    )
    return results


def _identity(number: int) -> str:
    return f"lora-{number:024x}"


def _name(number: int) -> str:
    return f"name-{number}"


def _record(number: int, weights: LoRAWeights, digest: str) -> AdapterRecord:
    made = new_record(
        _identity(number),
        weights,
        digest=digest,
        norms=weights.product_norms(),
        base=_BASE,
        base_id=_BASE.base_id,
        source="generated",
        descriptions=(f"The task with the number {number}.",),
    )
    return made.model_copy(update={"created": _CREATED + number})


def _fill(folder: Path, size: int) -> None:
    """A store with `size` adapters: the first ones are written by the service's code, the others are copies of them."""
    files = AdapterFiles(folder)
    torch.manual_seed(1)
    a = {m.name: torch.randn(_SPEC.rank, m.in_features) for m in _SPEC.modules}
    b = {m.name: torch.randn(m.out_features, _SPEC.rank) for m in _SPEC.modules}
    weights = LoRAWeights(_SPEC, a, b)
    digest = content_digest(weights)
    for number in range(min(_WRITTEN, size)):
        files.write(weights, _record(number, weights, digest))
        files.name(_name(number), _identity(number))
    copies = _copies(folder)
    for number in range(_WRITTEN, size):
        copies(number)


def _copies(folder: Path) -> Callable[[int], None]:
    """A function that adds the adapter with a number as another process would: complete when it appears."""
    first = _identity(0).encode()
    content, created = (folder / _identity(0) / RECORD_FILE).read_bytes(), f"{_CREATED}".encode()

    def make(number: int) -> None:
        identity = _identity(number)
        work = folder.parent / identity
        work.mkdir()
        for name in (CONFIG_FILE, WEIGHTS_FILE):  # file systems limit the number of links to one file
            os.link(folder / _identity(number % _WRITTEN) / name, work / name)
        record = content.replace(first, identity.encode()).replace(created, f"{_CREATED + number}".encode())
        (work / RECORD_FILE).write_bytes(record)
        work.rename(folder / identity)
        (folder / _name(number)).symlink_to(identity, target_is_directory=True)

    return make


def _measure(folder: Path, size: int, times: int) -> _Measured:
    return asyncio.run(_measured(folder, size, times))


async def _measured(folder: Path, size: int, times: int) -> _Measured:
    adapter_index._REST = 0  # in use, at most 5 % of the time is spent on scans
    Path("/proc/self/clear_refs").write_text("5", "ascii")  # resets the peak, because that of the imports was higher
    before = _megabytes("VmRSS")
    files = AdapterFiles(folder / "store")
    index = AdapterIndex(files, folder / "index.sqlite")
    start = time.perf_counter()
    index.catch_up(patience=3600)
    scan = time.perf_counter() - start
    metrics = Metrics()
    one_adapter = files.read(_identity(size - 1)).num_bytes
    store = AdapterStore(files, _BASE, max_bytes=_RESIDENT * one_adapter, metrics=metrics)
    catalogue = AdapterCatalogue(store, index, _BASE.base_id, metrics)
    draw = random.Random(1)
    names = [_name(number) for number in draw.sample(range(size), _ASKED)]
    copies, added = _copies(folder / "store"), itertools.count(size)

    async def page() -> None:
        records, _ = await catalogue.page(20, _identity(draw.randrange(20, size)))
        found = await catalogue.names_of([record.id for record in records])
        if len(found) != 20:
            raise RuntimeError(f"a page of 20 adapters has {len(found)}")

    async def one() -> None:
        record = await catalogue.record(draw.choice(names))
        await catalogue.names_of([record.id], fresh=True)

    async def together() -> None:
        async def ask(name: str) -> None:
            identity = await catalogue.resolve(name)
            (await asyncio.to_thread(store.acquire, identity)).release()

        await asyncio.gather(*map(ask, 2 * names))

    milliseconds = {}
    kinds: dict[str, tuple[Callable[[], Awaitable[None]], int]] = {
        "page": (page, times),
        "one": (one, times),
        "together": (together, max(2, times // 10)),
        "changing": (page, times),
    }
    for kind, (request, count) in kinds.items():
        await request()
        taken = []
        for _ in range(count):
            if kind == "changing":
                copies(next(added))
            start = time.perf_counter()
            await request()
            taken.append(1e3 * (time.perf_counter() - start))
        milliseconds[kind] = taken
    catalogue.close()
    return _Measured(milliseconds, scan, _megabytes("VmHWM") - before)


def _megabytes(field: str) -> float:
    """A field of /proc/self/status in MB. The peak of getrusage includes that of the process before exec."""
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    return int(next(line for line in lines if line.startswith(f"{field}:")).split()[1]) / 1024
