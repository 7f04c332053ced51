"""`python -m service` as a separate process, with given models."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import httpx

from tests.service.support.harness import free_port, wait_until


class Process:
    """The service on a free port, with its store, cache and log in `folder`.

    Args:
        more: further settings, by their names without the prefix.
    """

    def __init__(self, folder: Path, checkpoint: Path, base: Path, **more: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / f"log-{self.port}"
        values = {
            "PORT": str(self.port),
            "CHECKPOINT": str(checkpoint),
            "BASE": str(base),
            "STORE_DIR": str(folder / "store"),
            "CACHE_DIR": str(folder / "cache"),
            "THREADS": "1",
            **more,
        }
        env = {**os.environ, **{f"LLGBM_{name}": value for name, value in values.items()}, "HF_HUB_OFFLINE": "1"}
        with self.log.open("wb") as log:
            self.popen = subprocess.Popen(
                [sys.executable, "-W", "error::ResourceWarning", "-m", "service"],
                env=env,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def status(self) -> str:
        """The status of /readyz; "silent" without a response."""
        try:
            answer = httpx.get(f"{self.url}/readyz", timeout=30)
        except httpx.TransportError:
            return "silent"
        return str(answer.json()["status"])

    def wait_ready(self) -> None:
        wait_until(lambda: self.status() == "ready" or self.popen.poll() is not None, seconds=240)
        assert self.popen.poll() is None, self.log.read_text()

    def events(self) -> list[str]:
        """The names of the logged events."""
        return [json.loads(line)["event"] for line in self.log.read_text().splitlines() if line.startswith("{")]

    def end(self) -> None:
        if self.popen.poll() is None:
            self.popen.kill()
        self.popen.wait()
