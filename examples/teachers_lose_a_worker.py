"""Train four teachers on a Ray cluster of two machines, lose one midway, and compare with a run that nothing disturbed.

    python -m examples.teachers_lose_a_worker
    python -m examples.teachers_lose_a_worker --base Qwen/Qwen2.5-Coder-0.5B-Instruct --steps 10

Both machines are this one: Ray runs a scheduler and a worker for each. The second is killed when the first teacher is
finished. Prints one line of JSON, and exits with 1 if the teachers differ. Needs `pip install -e '.[ray]'`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read when Ray is imported

import ray
import torch
from ray.cluster_utils import Cluster

from training.phases import teachers, tiny


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="", help="hub id or folder of the base; by default the tiny random one")
    parser.add_argument("--steps", type=int, default=60, help="optimiser steps of each teacher")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tiny.prepare(tiny.Config(workdir=Path(folder), families=("letters", "case_style"), tasks_per_family=2))
        config = teachers.Config(
            workdir=Path(folder) / "undisturbed",
            folder=Path(folder) / "tasks",
            base=args.base or str(Path(folder) / "models" / "base"),
            steps=args.steps,
        )
        torch.set_num_threads(1)  # as a worker with one processor: sums are then added up in the same order
        with two_machines() as (cluster, second):
            found = lose_one_midway(config, cluster, second)
    print(json.dumps(found))
    return 0 if found["identical"] else 1


@contextmanager
def two_machines() -> Iterator[tuple[Any, Any]]:
    """A Ray cluster of two machines with one processor each, this process connected to it; and the second machine."""
    machine: dict[str, Any] = {"num_cpus": 1, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=machine)
    try:
        second = cluster.add_node(**machine)
        ray.init(cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        yield cluster, second
    finally:
        ray.shutdown()
        cluster.shutdown()


def lose_one_midway(config: teachers.Config, cluster: Any, second: Any) -> dict[str, Any]:
    """Train in this process, then on the cluster, which loses `second` after the first teacher; what came of it."""
    seconds = {"undisturbed": -time.monotonic()}
    teachers.run(config)
    seconds["undisturbed"] += time.monotonic()

    disturbed = replace(config, workdir=config.workdir.with_name("disturbed"), ray="auto")
    finished_at_the_loss: list[str] = []
    over = threading.Event()

    def lose() -> None:
        while not finished_at_the_loss:
            if over.is_set():  # the training has failed
                return
            finished_at_the_loss[:] = digests(disturbed.workdir)
            time.sleep(0.02)
        cluster.remove_node(second, allow_graceful=False)

    loser = threading.Thread(target=lose)
    loser.start()
    seconds["disturbed"] = -time.monotonic()
    try:
        teachers.run(disturbed)
    finally:
        over.set()
    seconds["disturbed"] += time.monotonic()
    loser.join()
    expected, got = digests(config.workdir), digests(disturbed.workdir)
    return {
        "teachers": len(got),
        "finished_when_the_worker_was_lost": len(finished_at_the_loss),
        "machine_lost": not second.any_processes_alive(),
        "identical": got == expected,
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
    }


def digests(workdir: Path) -> dict[str, str]:
    """sha256 of every adapter's tensors."""
    files = sorted(workdir.glob("*/*/adapter_model.safetensors"))
    return {file.parent.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


if __name__ == "__main__":
    sys.exit(main())
