"""The README's examples: commands with their answers. Runs them, compares the answers, and can rewrite them.

    python -m tests.readme_examples        runs every command against a new service and rewrites the answers

An example is a `console` block: a line that starts with `$ `, its continuation lines (after a backslash), then the
answer.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PORT = "8000"
VOLATILE = re.compile(r"^(created|bytes|digest|first_token|total|adapter|encode|generate|store|id)$")
"""Keys whose values differ between runs, or in the last bits between processors; adapter ids do not."""

_BLOCK = re.compile(r"```console\n(.*?)```", re.DOTALL)


@dataclass(frozen=True)
class Example:
    """A command of the README and the answer below it."""

    command: str
    answer: str


def examples(text: str) -> list[Example]:
    """All examples that use the service, in order."""
    found = []
    for block in _BLOCK.findall(text):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            lines = part.splitlines()
            end = next(i for i, line in enumerate(lines) if not line.endswith("\\"))
            found.append(Example("\n".join(lines[: end + 1]), "\n".join(lines[end + 1 :])))
    return [e for e in found if "curl" in e.command or e.command.startswith("python examples/")]


@contextmanager
def service() -> Iterator[int]:
    """The port of a ready service with the shipped generator and an empty store."""
    with socket.socket() as free, tempfile.TemporaryDirectory() as store:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        environment = os.environ | {"LLGBM_PORT": str(port), "LLGBM_STORE_DIR": store}
        process = subprocess.Popen([sys.executable, "-m", "service"], cwd=ROOT, env=environment, stderr=subprocess.PIPE)
        try:
            _wait_until_ready(process, port)
            yield port
        finally:
            process.terminate()
            process.communicate(timeout=60)


def run(example: Example, port: int) -> str:
    """Run the command in the root of the repository, against the service on `port`; returns its standard output.

    Raises:
        subprocess.CalledProcessError: its exit status is not 0.
    """
    command = example.command.replace("\\\n", " ").replace(f":{PORT}", f":{port}")
    if command.startswith("python "):
        command = f"{sys.executable} {command.removeprefix('python ')}"
    with tempfile.TemporaryDirectory() as folder:
        inside = f"cd {folder} && ln -s {ROOT}/examples {ROOT}/llgbm . && {command}"
        done = subprocess.run(
            ["bash", "-ec", inside], capture_output=True, text=True, check=True, timeout=240,
            env=os.environ
            | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "LLGBM_URL": f"http://127.0.0.1:{port}"},
        )  # fmt: skip
    return done.stdout.rstrip("\n")


def same(printed: str, expected: str) -> bool:
    """Whether two answers agree: as JSON without the keys that differ between runs; else as text."""
    try:
        return _same(json.loads(printed), json.loads(expected), "")
    except json.JSONDecodeError:
        return printed.strip() == expected.strip()


def _same(printed: Any, expected: Any, key: str) -> bool:
    if isinstance(printed, dict) and isinstance(expected, dict):
        return printed.keys() == expected.keys() and all(_same(printed[k], expected[k], k) for k in printed)
    if isinstance(printed, list) and isinstance(expected, list):
        return len(printed) == len(expected) and all(_same(p, e, key) for p, e in zip(printed, expected, strict=True))
    if isinstance(printed, float) and isinstance(expected, float):
        return bool(VOLATILE.match(key)) or abs(printed - expected) < 1e-3
    if VOLATILE.match(key) and not str(expected).startswith("lora-"):
        return type(printed) is type(expected)
    return bool(printed == expected)


def rewrite(text: str, port: int) -> str:
    """The README with the answers of the service on `port`."""
    for example in examples(text):
        answer = run(example, port)
        before = f"{example.answer}\n" if example.answer else ""
        text = text.replace(f"$ {example.command}\n{before}", f"$ {example.command}\n{answer}\n")
    return text


def _wait_until_ready(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    process.kill()
    _, log = process.communicate()
    raise RuntimeError(f"the service did not become ready; its log ends with: {log[-1500:].decode(errors='replace')}")


if __name__ == "__main__":
    with service() as at:
        README.write_text(rewrite(README.read_text("utf-8"), at), "utf-8")
