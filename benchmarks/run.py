"""`make bench`: runs the benchmarks and writes `benchmarks/results.json`, `benchmarks/RESULTS.md` and its plot.

Results of benchmarks that do not run this time are kept. If a benchmark fails, this is reported, the others still run,
and the exit status is 1.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.adapters import many_adapters, prompt_to_adapter, refining, training_step
from benchmarks.decoding import (
    batch_adapters,
    decode_bandwidth,
    decode_peft,
    few_shot,
    hooked_merged,
    int8_accuracy,
    long_prompt,
    peft_mixed,
    plain_transformers,
)
from benchmarks.measuring.measure import Result, pin
from benchmarks.measuring.report import Results, read_results, write_results
from benchmarks.measuring.workbench import CHECKPOINT, Workbench
from benchmarks.service import service_llama_cpp, service_load, service_overhead, service_vllm, stream_beside_job

BENCHMARKS: dict[str, Callable[[Workbench], list[Result]]] = {
    "decode_bandwidth": decode_bandwidth.run,
    "decode_peft": decode_peft.run,
    "batch_adapters": batch_adapters.run,
    "peft_mixed": peft_mixed.run,
    "hooked_merged": hooked_merged.run,
    "plain_transformers": plain_transformers.run,
    "prompt_to_adapter": prompt_to_adapter.run,
    "few_shot": few_shot.run,
    "long_prompt": long_prompt.run,
    "training_step": training_step.run,
    "refining": refining.run,
    "int8_accuracy": int8_accuracy.run,
    "many_adapters": many_adapters.run,
    "service_overhead": service_overhead.run,
    "service_load": service_load.run,
    "stream_beside_job": stream_beside_job.run,
    "service_vllm": service_vllm.run,
    "service_llama_cpp": service_llama_cpp.run,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=BENCHMARKS, help=", ".join(BENCHMARKS))
    parser.add_argument(
        "--quick", action="store_true", help="few repetitions, to check that everything works; writes nothing"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    parser.add_argument("--base", help="hub id or folder; by default the generator's base")
    parser.add_argument("--text-encoder", help="hub id or folder; by default the generator's text encoder")
    parser.add_argument(
        "--peer", action="append", default=[], metavar="NAME=PYTHON", help="an interpreter with vllm or llama-cpp"
    )
    args = parser.parse_args()
    peers = {name: Path(path) for name, _, path in (given.partition("=") for given in args.peer)}
    pin(args.threads)
    with Workbench(
        quick=args.quick,
        checkpoint=args.checkpoint,
        base=args.base,
        text_encoder=args.text_encoder,
        peers=peers,
        threads=args.threads,
    ) as bench:
        made, failed = _run(bench, args.only or list(BENCHMARKS))
    print(json.dumps({one["name"]: one["value"] for name in made for one in made[name]}))
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _run(bench: Workbench, names: Sequence[str]) -> tuple[Results, list[str]]:
    """Run benchmarks and write their results.

    Returns:
        The results by benchmark, and the names of the failed benchmarks.
    """
    results = read_results()
    failed: list[str] = []
    made: Results = {}
    for name in names:
        print(f"{name} ...", flush=True)
        start = time.perf_counter()
        try:
            found = BENCHMARKS[name](bench)
        except Exception:
            traceback.print_exc()
            failed.append(name)
            continue
        for one in found:
            reasons = "".join(f"; {arm} is missing: {why}" for arm, why in one.missing.items())
            print(f"  {one.name}: {one.value} {one.unit} {one.arms}{reasons}", flush=True)
        print(f"  {time.perf_counter() - start:.0f} s", flush=True)
        made[name] = [{**one.to_dict(), "benchmark": name, "machine": machine(bench.threads)} for one in found]
        results[name] = made[name]
        if not bench.quick:
            write_results(results, order=list(BENCHMARKS))
    return made, failed


def machine(threads: int) -> dict[str, Any]:
    """Hardware and software of this machine."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": _processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": threads,
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "peft")},
    }


def _processor() -> str:
    """Linux's name of the processor, with family and model, since virtual machines hide the name; else a short name."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    found = dict(line.split(":", 1) for line in lines if ":" in line)
    fields = {key.strip(): value.strip() for key, value in found.items()}
    return f"{fields.get('model name', 'unknown')} (family {fields.get('cpu family')}, model {fields.get('model')})"


if __name__ == "__main__":
    sys.exit(main())
