from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.service.simulate_fleet import (
    DOCUMENT,
    RESULT,
    Fleet,
    as_markdown,
    popularity,
    run,
    simulate,
    with_table,
)

SMALL = Fleet(store_adapters=500, memory_adapters=20, servers=4)
IDLE = replace(SMALL, requests_per_second=0.01)


def hit_rate_of_lru(share: np.ndarray, size: int) -> float:
    """Che's approximation: an item is cached if it was requested within the time in which `size` items are."""
    low, high = 0.0, 1e12
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if (1 - np.exp(-share * middle)).sum() < size else (low, middle)
    return float((share * (1 - np.exp(-share * low))).sum())


def test_the_same_seed_gives_the_same_numbers_and_another_one_others() -> None:
    first, again, other = (simulate(SMALL, 1000, 0.8, requests=2000, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_hit_rates_are_those_of_the_theory_from_the_first_request_on() -> None:
    outcome = simulate(SMALL, 5000, 0.9, requests=40_000, seed=0)
    assert outcome.store_hits == pytest.approx(hit_rate_of_lru(popularity(5000, 0.9), 500), abs=0.015)


def test_a_store_for_all_prompts_never_makes_an_adapter_twice() -> None:
    outcome = simulate(replace(SMALL, store_adapters=1000), 1000, 0.8, requests=5000, seed=0)
    assert outcome.store_hits == 1
    assert outcome.busy["generators"] == 0


def test_an_idle_fleet_answers_in_the_time_that_the_parts_take() -> None:
    warm = simulate(replace(IDLE, store_adapters=1000, memory_adapters=1000), 1000, 0.8, requests=500, seed=0)
    assert warm.first_token_p99 == pytest.approx(IDLE.prefill_seconds, abs=1e-3)
    cold = simulate(replace(IDLE, store_adapters=1, memory_adapters=1), 10**6, 0.1, requests=500, seed=0)
    moved = 2 * IDLE.adapter_megabytes / IDLE.store_megabytes_per_second  # written to the store and read from it
    steps = IDLE.generator_seconds + moved + IDLE.load_seconds + IDLE.prefill_seconds
    assert cold.first_token_p50 == pytest.approx(steps, abs=1e-3)
    assert cold.store_hits < 0.05


def test_more_prompts_hit_less_wait_longer_and_cost_no_less() -> None:
    few, many = (simulate(SMALL, count, 0.8, requests=5000, seed=0) for count in (300, 30_000))
    assert few.store_hits > many.store_hits
    assert few.memory_hits > many.memory_hits
    assert few.first_token_p99 < many.first_token_p99
    assert few.dollars_per_million <= many.dollars_per_million


def test_the_wall_is_the_part_that_is_busiest_and_moves_when_it_is_widened() -> None:
    outcome = simulate(replace(SMALL, generators=1), 30_000, 0.8, requests=5000, seed=0)
    assert outcome.wall == "generators"
    assert outcome.busy["generators"] > 1
    assert outcome.most_requests_per_second < SMALL.requests_per_second
    wider = simulate(replace(SMALL, generators=1000), 30_000, 0.8, requests=5000, seed=0)
    assert wider.wall != "generators"
    assert wider.most_requests_per_second > outcome.most_requests_per_second


def test_the_document_quotes_the_result_and_the_result_is_of_this_fleet() -> None:
    report = json.loads(RESULT.read_text("utf-8"))
    assert with_table(DOCUMENT.read_text("utf-8"), report) == DOCUMENT.read_text("utf-8"), (
        "run: python -m benchmarks.service.simulate_fleet --write"
    )
    small = [row for row in report["outcomes"] if row["prompts"] in (1000, 100_000)]
    again = run(Fleet(), [1000, 100_000], [0.8, 1.0], requests=report["requests"], seed=report["seed"])
    assert again["fleet"] == report["fleet"]
    assert as_markdown({"outcomes": again["outcomes"]}) == as_markdown({"outcomes": small})
