"""Simulates a fleet under a Zipf distribution of prompts: hit rates, latencies, bottleneck and price by prompt count.

    arrival -> store: is there an adapter? else a generator makes one -> its server: is it in memory? else it is loaded
            -> a place in the server's batch -> first token -> last token

Requests are independent draws (the independent reference model), so the caches can start in their steady state: the
time since an item's last request is exponentially distributed with the item's rate, and an LRU cache contains the items
with the shortest times. Each part serves first come, first served.
`python -m benchmarks.service.simulate_fleet --write` writes results/fleet_simulation.json and the tables of
docs/SCALING.md; the same seed gives the same numbers.
"""

from __future__ import annotations

import argparse
import heapq
import json
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.documents import with_section

ROOT = Path(__file__).resolve().parents[2]
RESULT, DOCUMENT = ROOT / "results" / "fleet_simulation.json", ROOT / "docs" / "SCALING.md"
PROMPTS = (10**3, 10**4, 10**5, 10**6, 10**7)
EXPONENTS = (0.8, 1.0)
_MONTH_SECONDS = 30 * 86400

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Fleet:
    """Sizes and speeds of the fleet; docs/SCALING.md gives the source of each number."""

    requests_per_second: float = 100.0
    generators: int = 8
    generator_seconds: float = 0.21
    store_adapters: int = 200_000
    adapter_megabytes: float = 17.64
    store_megabytes_per_second: float = 1000.0
    servers: int = 8
    memory_adapters: int = 1000
    load_seconds: float = 0.05
    slots: int = 64
    tokens_per_second: float = 2000.0
    mean_tokens: float = 64.0
    prefill_seconds: float = 0.03
    generator_dollars_per_hour: float = 0.10
    server_dollars_per_hour: float = 0.80
    storage_dollars_per_gigabyte_month: float = 0.08


@dataclass(frozen=True)
class Outcome:
    """One row of the table. Hits are fractions of requests, latencies are seconds, `busy` is demand over capacity."""

    prompts: int
    exponent: float
    store_hits: float
    memory_hits: float
    first_token_p50: float
    first_token_p99: float
    total_p50: float
    total_p99: float
    busy: dict[str, float]
    wall: str
    most_requests_per_second: float
    dollars_per_million: float


def popularity(prompts: int, exponent: float) -> Floats:
    """Probability of each prompt, the most popular first: a Zipf distribution."""
    weights: Floats = np.arange(1, prompts + 1, dtype=np.float64) ** -exponent
    share: Floats = weights / weights.sum()
    return share


def simulate(fleet: Fleet, prompts: int, exponent: float, *, requests: int, seed: int) -> Outcome:
    """Run `requests` requests through the fleet, with warm caches."""
    random = np.random.default_rng([seed, prompts, round(100 * exponent)])
    share = popularity(prompts, exponent)
    ages = random.standard_exponential(prompts) / share
    items = np.searchsorted(share.cumsum(), random.random(requests) * (1 - 1e-12)).astype(np.int64)
    arrivals = random.exponential(1 / fleet.requests_per_second, requests).cumsum()
    home = random.integers(0, fleet.servers, prompts)
    tokens = random.geometric(1 / fleet.mean_tokens, requests)

    ready, made = _generate(fleet, items, arrivals, _youngest(ages, np.arange(prompts), fleet.store_adapters))
    memories = [
        _youngest(ages, np.flatnonzero(home == server), fleet.memory_adapters) for server in range(fleet.servers)
    ]
    present, loaded = _load(fleet, items, home[items], ready, made, memories)
    begun = _admit(fleet, home[items], present, tokens)
    first = begun + fleet.prefill_seconds
    last = begun + _row_seconds(fleet, tokens)
    return _outcome(fleet, prompts, exponent, made, loaded, home[items], first - arrivals, last - arrivals)


def _youngest(ages: Floats, among: Ints, count: int) -> OrderedDict[int, None]:
    """An LRU cache in its steady state: the `count` youngest of the items `among`, the oldest first."""
    if len(among) > count:
        among = among[np.argpartition(ages[among], count)[:count]]
    return OrderedDict.fromkeys(among[np.argsort(-ages[among])].tolist())


def _touch(cache: OrderedDict[int, None], item: int, size: int) -> bool:
    """Request an item of an LRU cache; returns whether it was cached. May evict the least recently used item."""
    hit = item in cache
    cache[item] = None
    cache.move_to_end(item)
    if len(cache) > size:
        cache.popitem(last=False)
    return hit


def _generate(
    fleet: Fleet, items: Ints, arrivals: Floats, store: OrderedDict[int, None]
) -> tuple[Floats, NDArray[np.bool_]]:
    """The time when each request's adapter is in the store, and whether the request made it (single flight)."""
    free = [0.0] * fleet.generators
    done: dict[int, float] = {}
    ready, made = arrivals.copy(), np.zeros(len(items), dtype=bool)
    for index, (item, now) in enumerate(zip(items.tolist(), arrivals.tolist(), strict=True)):
        if not _touch(store, item, fleet.store_adapters):
            made[index] = True
            done[item] = max(now, free[0]) + fleet.generator_seconds
            heapq.heapreplace(free, done[item])
        ready[index] = max(now, done.get(item, now))
    return ready, made


def _load(
    fleet: Fleet,
    items: Ints,
    servers: Ints,
    ready: Floats,
    made: NDArray[np.bool_],
    memories: Sequence[OrderedDict[int, None]],
) -> tuple[Floats, NDArray[np.bool_]]:
    """The time when each request's adapter is in its server's memory, and whether it was loaded for it (single flight).

    Writes to and reads from the store are sequential.
    """
    free, store_free = [0.0] * fleet.servers, 0.0
    moving = fleet.adapter_megabytes / fleet.store_megabytes_per_second
    done: dict[int, float] = {}
    present, loaded = ready.copy(), np.zeros(len(items), dtype=bool)
    for index in np.argsort(ready, kind="stable").tolist():
        item, server, now = int(items[index]), int(servers[index]), float(ready[index])
        if made[index]:
            store_free = max(now, store_free) + moving
        if not _touch(memories[server], item, fleet.memory_adapters):
            loaded[index] = True
            store_free = max(now, store_free) + moving
            done[item] = free[server] = max(store_free, free[server]) + fleet.load_seconds
        present[index] = max(now, done.get(item, now))
    return present, loaded


def _admit(fleet: Fleet, servers: Ints, present: Floats, tokens: Ints) -> Floats:
    """The time when each request gets a place in its server's batch."""
    seconds = _row_seconds(fleet, tokens)
    free = [[0.0] * fleet.slots for _ in range(fleet.servers)]
    begun = present.copy()
    for index in np.argsort(present, kind="stable").tolist():
        places = free[int(servers[index])]
        begun[index] = max(float(present[index]), places[0])
        heapq.heapreplace(places, float(begun[index]) + float(seconds[index]))
    return begun


def _row_seconds(fleet: Fleet, tokens: Ints) -> Floats:
    """Seconds that rows spend in a full batch, whose places share its tokens per second equally."""
    seconds: Floats = fleet.prefill_seconds + tokens.astype(np.float64) * (fleet.slots / fleet.tokens_per_second)
    return seconds


def _outcome(
    fleet: Fleet,
    prompts: int,
    exponent: float,
    made: NDArray[np.bool_],
    loaded: NDArray[np.bool_],
    servers: Ints,
    first: Floats,
    total: Floats,
) -> Outcome:
    rate, makes, loads = fleet.requests_per_second, float(made.mean()), float(loaded.mean())
    busiest = np.bincount(servers, minlength=fleet.servers).max() / len(servers)  # the server with the popular prompts
    busiest_loads = np.bincount(servers[loaded], minlength=fleet.servers).max() / len(servers)
    row = fleet.prefill_seconds + fleet.mean_tokens * fleet.slots / fleet.tokens_per_second
    busy = {
        "generators": rate * makes * fleet.generator_seconds / fleet.generators,
        "store": rate * (makes + loads) * fleet.adapter_megabytes / fleet.store_megabytes_per_second,
        "loading": rate * float(busiest_loads) * fleet.load_seconds,
        "decoding": rate * float(busiest) * row / fleet.slots,
    }
    wall = max(busy, key=lambda part: busy[part])
    hourly = fleet.generators * fleet.generator_dollars_per_hour + fleet.servers * fleet.server_dollars_per_hour
    gigabytes = min(prompts, fleet.store_adapters) * fleet.adapter_megabytes / 1000
    stored = gigabytes * fleet.storage_dollars_per_gigabyte_month / _MONTH_SECONDS
    return Outcome(
        prompts=prompts,
        exponent=exponent,
        store_hits=round(1 - makes, 4),
        memory_hits=round(1 - loads, 4),
        first_token_p50=round(float(np.quantile(first, 0.5)), 3),
        first_token_p99=round(float(np.quantile(first, 0.99)), 3),
        total_p50=round(float(np.quantile(total, 0.5)), 3),
        total_p99=round(float(np.quantile(total, 0.99)), 3),
        busy={part: round(value, 4) for part, value in busy.items()},
        wall=wall,
        most_requests_per_second=round(rate / busy[wall], 1),
        dollars_per_million=round(1e6 / rate * (hourly / 3600 + stored), 2),
    )


def as_markdown(report: dict[str, Any]) -> str:
    """The report as a table."""
    lines = [
        "| prompts | exponent | adapter existed | was in memory | first token p50, p99 s | answer p50, p99 s | "
        "busiest part | carries at most | dollars a million |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in report["outcomes"]:
        lines.append(
            f"| {row['prompts']:,} | {row['exponent']:g} | {row['store_hits']:.1%} | {row['memory_hits']:.1%} | "
            f"{row['first_token_p50']:.2f}, {row['first_token_p99']:.2f} | {row['total_p50']:.1f}, "
            f"{row['total_p99']:.1f} | {row['wall']}, {row['busy'][row['wall']]:.0%} | "
            f"{row['most_requests_per_second']:.0f}/s | {row['dollars_per_million']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def run(
    fleet: Fleet, prompts: Iterable[int], exponents: Iterable[float], *, requests: int, seed: int
) -> dict[str, Any]:
    """The whole report."""
    exponents = tuple(exponents)
    outcomes = [
        asdict(simulate(fleet, count, exponent, requests=requests, seed=seed))
        for exponent in exponents
        for count in prompts
    ]
    return {"fleet": asdict(fleet), "requests": requests, "seed": seed, "outcomes": outcomes}


def with_table(document: str, report: dict[str, Any]) -> str:
    """`document` with the current table of the report. Raises ValueError as `with_section`."""
    return with_section(document, "simulation", as_markdown(report))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=50_000, help="number of requests per row")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help=f"update {RESULT.name} and {DOCUMENT.name}")
    args = parser.parse_args(arguments)
    report = run(Fleet(), PROMPTS, EXPONENTS, requests=args.requests, seed=args.seed)
    if args.write:
        RESULT.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
        DOCUMENT.write_text(with_table(DOCUMENT.read_text("utf-8"), report), "utf-8")
    print(as_markdown(report))


if __name__ == "__main__":
    main()
