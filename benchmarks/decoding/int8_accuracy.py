"""Accuracy of the base in int8 and in float32: greedy exact match on tasks.

`python -m benchmarks.decoding.int8_accuracy --tasks FOLDER` measures on a folder of task files;
`python -m training tasks` can write some. By default procedural tasks are used. Every task uses the shipped generator's
shared adapter, with its first description above the input. Both arms have the same rows in one run.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path

import torch

from benchmarks.measuring.measure import Result
from benchmarks.measuring.workbench import CHECKPOINT, Workbench
from llgbm.evaluation import score_rows
from training.tasks.format import load_tasks
from training.tasks.procedural_tasks import synthetic_tasks
from training.tasks.rows import eval_row

_TARGET = -1.0
"""Lowest acceptable change of exact match, in percentage points."""


def run(bench: Workbench, *, folder: Path | None = None, tasks: int = 60, rows: int = 12) -> list[Result]:
    """Measure on at most `tasks` tasks and `rows` test rows of each."""
    if bench.quick:
        tasks, rows = min(tasks, 12), min(rows, 5)
    found = synthetic_tasks() if folder is None else load_tasks(folder)
    chosen = random.Random(0).sample(found, min(tasks, len(found)))
    adapter = bench.checkpoint.generator.shared_adapter().detach()
    groups = [
        (adapter, [eval_row(bench.float32, e, description=task.descriptions[0]) for e in task.test[:rows]])
        for task in chosen
    ]
    right: dict[str, list[bool]] = {}
    seconds: dict[str, float] = {}
    for name, base in (("float32", bench.float32), ("int8", bench.int8)):
        start = time.perf_counter()
        right[name] = [score.correct for group in score_rows(base, groups) for score in group]
        seconds[name] = time.perf_counter() - start
    share = {name: round(100 * sum(marks) / len(marks), 2) for name, marks in right.items()}
    pairs = list(zip(right["float32"], right["int8"], strict=True))
    lost, won = pairs.count((True, False)), pairs.count((False, True))
    return [
        Result(
            name="exact match of greedy answers, int8 base minus float32 base",
            value=round(share["int8"] - share["float32"], 2),
            unit="points",
            higher_is_better=True,
            arms=share,
            arm_unit="% right",
            n=len(pairs),
            spread={},
            target=_TARGET,
            note=f"{len(pairs)} rows of {len(chosen)} tasks; int8 alone is wrong on {lost} and float32 alone on {won}. "
            f"The pass took {seconds['float32']:.0f} s in float32 and {seconds['int8']:.0f} s in int8.",
        )
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=Path, help="folder of task files; by default the procedural tasks")
    parser.add_argument("--limit-tasks", type=int, default=60, help="number of tasks, drawn at random")
    parser.add_argument("--limit-rows", type=int, default=12, help="test rows per task")
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with Workbench(quick=False, checkpoint=args.checkpoint, threads=args.threads) as bench:
        results = run(bench, folder=args.tasks, tasks=args.limit_tasks, rows=args.limit_rows)
    for found in results:
        print(f"{found.name}: {found.value:+g} {found.unit}; {found.arms}; {found.note}")


if __name__ == "__main__":
    main()
