"""Data-parallel training of one generator in several processes, with accelerate and torch's launcher.

    python -m torch.distributed.run --standalone --nproc-per-node 2 -m training fit --config FILE

`fit` reads from its environment that it is one of several processes, and takes its share of every batch. The first
process writes the same metrics, state and artefact as a single process would.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from llgbm.errors import ConfigError


class AccelerateGroup:
    """The processes started by a launcher, as the process group of `llgbm.training.train`.

    Raises:
        ConfigError: accelerate is not installed.
    """

    def __init__(self) -> None:
        try:
            from accelerate import Accelerator
        except ModuleNotFoundError as error:
            if error.name != "accelerate":
                raise
            raise ConfigError("a fit in several processes needs accelerate: pip install -e '.[training]'") from error
        self._accelerator = Accelerator(cpu=True)  # a fit's tensors are on the CPU, also on a machine with a GPU

    @property
    def rank(self) -> int:
        """Number of this process, from 0."""
        return int(self._accelerator.process_index)

    @property
    def size(self) -> int:
        """Number of processes."""
        return int(self._accelerator.num_processes)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes; `tensor` itself is unchanged."""
        total: Tensor = self._accelerator.reduce(tensor.detach().clone(), reduction="sum")
        return total

    def close(self) -> None:
        """Wait for all processes, then leave the group; leaving while others communicate may abort the process."""
        self._accelerator.wait_for_everyone()
        self._accelerator.end_training()


def process_group() -> AccelerateGroup | None:
    """The group of this process, according to the launcher's variable WORLD_SIZE; None if it runs alone."""
    return AccelerateGroup() if int(os.environ.get("WORLD_SIZE", "1")) > 1 else None


def launch(words: Sequence[str], processes: int) -> None:
    """Run `python -m training WORDS` in `processes` processes on this machine, and wait for them.

    Raises:
        ConfigError: they failed; the message ends with the last lines of their stderr.
    """
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m", "training"]
    threads = max(1, torch.get_num_threads() // processes)
    environment = {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": str(threads), **os.environ}
    done = subprocess.run(
        [sys.executable, *start, *words], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        last = " | ".join(done.stderr.strip().splitlines()[-8:])
        raise ConfigError(f"{processes} processes of `training {words[0]}` ended with {done.returncode}: {last}")
