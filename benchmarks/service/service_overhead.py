"""Time per streamed token of the service, compared with the bare decoder in this process."""

from __future__ import annotations

import time

from benchmarks.measuring.measure import Result, result
from benchmarks.measuring.workbench import Workbench, steps
from benchmarks.service.servers import our_service

_TOKENS = 64


def run(bench: Workbench) -> list[Result]:
    tokens = bench.tokens(_TOKENS)
    measured: dict[str, list[float]] = {"service": [], "decoder": []}
    with our_service(bench) as server:
        for number in range(bench.times(10) + 1):
            (answer,) = server.answers(["task-0"], tokens=tokens)
            decoder = bench.decoder(bench.int8, [bench.adapters[0]], tokens=tokens - 1)
            start = time.perf_counter()
            steps(decoder, answer.tokens - 1)
            taken = time.perf_counter() - start
            if number:  # the first is warm-up
                measured["service"].append(1e3 * answer.streaming / (answer.tokens - 1))
                measured["decoder"].append(1e3 * taken / (answer.tokens - 1))
    return [
        result(
            "service overhead per token over the bare engine",
            measured,
            lambda m: m["service"] / m["decoder"] - 1,
            unit="share",
            arm_unit="ms a token",
            higher=False,
            target=0.05,
            note="One client, one adapter, int8 base; from the first piece of text to the last.",
        )
    ]
