"""`make bench`: runs every benchmark and writes `benchmarks/results.json` and `benchmarks/RESULTS.md`."""

from __future__ import annotations

import argparse
import json
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks import decode, prompt_to_adapter

HERE = Path(__file__).resolve().parent
CHECKPOINT = HERE.parent / "checkpoints" / "qwen2.5-0.5b"
BENCHMARKS = {"prompt_to_adapter": prompt_to_adapter.run, "decode": decode.run}
REPEATS = {"prompt_to_adapter": 30, "decode": 5}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(BENCHMARKS), help=f"which: {', '.join(BENCHMARKS)}")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    results = []
    for name in args.names:
        print(f"{name} ...", flush=True)
        results += [r.to_dict() for r in BENCHMARKS[name](CHECKPOINT, n=REPEATS[name])]
    report = {"machine": machine(args.threads), "results": results}
    (HERE / "results.json").write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    (HERE / "RESULTS.md").write_text(as_markdown(report), "utf-8")
    print((HERE / "RESULTS.md").read_text("utf-8"))


def machine(threads: int) -> dict[str, Any]:
    """What the numbers were measured on."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": platform.processor() or platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": threads,
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "peft")},
    }


def as_markdown(report: dict[str, Any]) -> str:
    """The results as a table."""
    lines = [
        "# Results",
        "",
        "Made by `make bench`. " + ", ".join(f"{k} {v}" for k, v in report["machine"].items()) + ".",
        "",
        "| benchmark | value | arms, median (smallest to largest) ms | n |",
        "|---|---|---|---|",
    ]
    for r in report["results"]:
        arms = "; ".join(f"{a} {m:g} ({r['spread'][a][0]:g} to {r['spread'][a][1]:g})" for a, m in r["arms"].items())
        lines.append(f"| {r['name']} | {r['value']:g} {r['unit']} | {arms} | {r['n']} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
