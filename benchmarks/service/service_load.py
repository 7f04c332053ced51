"""64 clients of the service at the same time: seconds to the first piece of text, and memory.

All clients ask at once, so the last ones wait until the prompts of the others were read: this is the worst case. Their
questions differ, so only the template is known of a prompt.
"""

from __future__ import annotations

import statistics

from benchmarks.measuring.measure import Result, over, result
from benchmarks.measuring.workbench import Workbench
from benchmarks.service.servers import our_service

_CLIENTS = 64
_TOKENS = 32
_MEMORY_TARGET = 1.8
_LAST_TWENTIETH = 18
"""Index of the 95th percentile among the 19 points that cut measurements into twentieths."""


def run(bench: Workbench) -> list[Result]:
    tokens = bench.tokens(_TOKENS)
    first: dict[str, list[float]] = {"one client": [], "64 clients, median": [], "64 clients, 95th percentile": []}
    rate: dict[str, list[float]] = {"one client": [], "64 clients": []}
    memory: dict[str, list[float]] = {"ready": [], "after 64 clients": []}
    with our_service(bench) as server:
        models = [f"task-{number % len(bench.adapter_folders)}" for number in range(_CLIENTS)]
        memory["ready"].append(server.highest_gigabytes())
        server.answers(models[:1], tokens=tokens)  # warm-up
        for _ in range(bench.times(5)):
            (alone,) = server.answers(models[:1], tokens=tokens)
            answers = server.answers(models, tokens=tokens)
            waited = [answer.first for answer in answers]
            first["one client"].append(alone.first)
            first["64 clients, median"].append(statistics.median(waited))
            first["64 clients, 95th percentile"].append(statistics.quantiles(waited, n=20)[_LAST_TWENTIETH])
            rate["one client"].append(alone.tokens / alone.seconds)
            all_tokens, longest = sum(answer.tokens for answer in answers), max(answer.seconds for answer in answers)
            rate["64 clients"].append(all_tokens / longest)
        memory["after 64 clients"].append(server.highest_gigabytes())
    note = f"{_CLIENTS} clients ask at the same moment, with {len(bench.adapter_folders)} adapters; int8 base."
    return [
        result(
            "first text of 64 clients at once, 95th percentile",
            first,
            lambda medians: medians["64 clients, 95th percentile"],
            unit="s",
            arm_unit="s",
            higher=False,
            note=note,
        ),
        result("tokens/s of 64 clients over one client", rate, over("64 clients", "one client"), arm_unit="tokens/s"),
        result(
            "highest resident memory of the service, 64 clients",
            memory,
            lambda medians: medians["after 64 clients"],
            unit="GB",
            arm_unit="GB",
            higher=False,
            target=_MEMORY_TARGET,
            note=note,
        ),
    ]
