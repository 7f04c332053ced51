"""One client of this project's service, compared with llama.cpp with the Q8_0 of the same model and one LoRA.

llama.cpp is built for this processor from the source distribution of llama-cpp-python. The converters in that source
make its two GGUF files. It decodes in its own process without HTTP; the service is measured through HTTP.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from contextlib import closing, nullcontext
from pathlib import Path

from platformdirs import user_cache_path

from benchmarks.measuring.measure import Result, over, result
from benchmarks.measuring.workbench import Workbench
from benchmarks.service.peers import (
    LLAMA_CPP,
    PeerError,
    environment,
    environment_folder,
    interpreter,
    last_line,
    version,
)
from benchmarks.service.servers import our_service
from llgbm.pretrained.find import resolve_pretrained

_TOKENS = 48
_SENTENCEPIECE = "sentencepiece==0.2.1"


def run(bench: Workbench) -> list[Result]:
    tokens = bench.tokens(_TOKENS)
    measured: dict[str, list[float]] = {"service": [], "llama.cpp": []}
    missing: dict[str, str] = {}
    rounds = bench.times(8) + 1
    other: _LlamaCpp | None = None
    note = f"{len(bench.prompt)} prompt tokens and {tokens} new ones, the prompt's pass in the time of both"
    try:
        other = _LlamaCpp(bench)
        note += f"; {version(LLAMA_CPP, interpreter(LLAMA_CPP, bench.peers))}"
    except PeerError as error:
        missing["llama.cpp"] = str(error)
        del measured["llama.cpp"]
    # both read every prompt in full
    ours = our_service(bench, LLGBM_PREFIX_TOKENS="0")
    with closing(other) if other is not None else nullcontext(), ours as server:
        for number in range(rounds):
            (answer,) = server.answers(["task-0"], tokens=tokens)
            theirs = None if other is None else other.tokens_a_second(bench.prompt, tokens)
            if number:  # the first is warm-up
                measured["service"].append(answer.tokens / answer.seconds)
                if theirs is not None:
                    measured["llama.cpp"].append(theirs)
    return [
        result(
            "service single-stream tokens/s over llama.cpp with the Q8_0 of the same model and one LoRA",
            measured,
            over("service", "llama.cpp"),
            arm_unit="tokens/s",
            target=0.7,
            missing=missing,
            note=f"{note}.",
        )
    ]


class _LlamaCpp:
    """The worker process with its model and LoRA."""

    def __init__(self, bench: Workbench) -> None:
        python = interpreter(LLAMA_CPP, bench.peers)
        base = resolve_pretrained(bench.base_name)
        source = _source(python)
        tools = _converters_needs(python)
        model = user_cache_path("llgbm") / "bench" / f"{base.name}-Q8_0.gguf"
        if not model.exists():
            part = model.with_suffix(".part")
            _convert(source / "convert_hf_to_gguf.py", [base, "--outtype", "q8_0", "--outfile", part], tools, bench)
            part.rename(model)
        lora = bench.scratch / "lora.gguf"
        arguments: list[str | Path] = [bench.adapter_folders[0], "--base", base, "--outtype", "f32", "--outfile", lora]
        _convert(source / "convert_lora_to_gguf.py", arguments, tools, bench)
        worker = Path(__file__).with_name("llama_cpp_worker.py")
        log = bench.scratch / "llama-cpp.log"
        self._process = subprocess.Popen(
            [str(python), str(worker), str(model), str(lora), str(bench.threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("w"),
            env=environment(bench.threads),
            text=True,
        )
        if self._process.stdin is None or self._process.stdout is None:
            raise PeerError("llama.cpp has no pipes")
        self._ask, self._answers, self._log = self._process.stdin, self._process.stdout, log
        self._read()

    def tokens_a_second(self, prompt: list[int], tokens: int) -> float:
        """Speed of one answer."""
        self._ask.write(json.dumps({"prompt": prompt, "tokens": tokens}) + "\n")
        self._ask.flush()
        answer = self._read()
        return float(answer["tokens"] / answer["seconds"])

    def close(self) -> None:
        """End the worker."""
        self._process.kill()
        self._process.wait()

    def _read(self) -> dict[str, float]:
        line = self._answers.readline()
        if not line:
            raise PeerError(f"llama.cpp ended: {last_line(self._log)}")
        answer: dict[str, float] = json.loads(line)
        return answer


def _source(python: Path) -> Path:
    """Folder of llama.cpp's source with its converters, from the source distribution."""
    folder = environment_folder(LLAMA_CPP) / "source"
    found = [path.parent for path in folder.glob("*/vendor/llama.cpp/convert_hf_to_gguf.py")]
    if not found:
        folder.mkdir(parents=True, exist_ok=True)
        command = [str(python), "-m", "pip", "download", "--no-deps", "--no-binary", "llama-cpp-python"]
        done = subprocess.run([*command, "-d", str(folder), LLAMA_CPP[1]], capture_output=True, text=True)
        archives = list(folder.glob("*.tar.gz"))
        if not archives:
            raise PeerError(f"the source of {LLAMA_CPP[1]} could not be fetched: {done.stderr.strip()[-300:]}")
        with tarfile.open(archives[0]) as archive:
            archive.extractall(folder, filter="data")
        found = [path.parent for path in folder.glob("*/vendor/llama.cpp/convert_hf_to_gguf.py")]
    if not found:
        raise PeerError(f"the source of {LLAMA_CPP[1]} holds no converter")
    return found[0]


def _converters_needs(python: Path) -> Path:
    """A folder with sentencepiece, which the converters always import, in addition to torch and transformers."""
    folder = environment_folder(LLAMA_CPP) / "converter"
    if not (folder / "sentencepiece").exists():
        command = [str(python), "-m", "pip", "install", "--no-deps", "--target", str(folder), _SENTENCEPIECE]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise PeerError(f"{_SENTENCEPIECE} could not be installed: {done.stderr.strip()[-300:]}")
    return folder


def _convert(script: Path, arguments: list[str | Path], tools: Path, bench: Workbench) -> None:
    path = f"{script.parent / 'gguf-py'}{os.pathsep}{tools}"
    variables = environment(bench.threads, PYTHONPATH=path, HF_HUB_OFFLINE="1")
    command = [sys.executable, str(script), *map(str, arguments)]
    done = subprocess.run(command, env=variables, capture_output=True, text=True)
    if done.returncode:
        raise PeerError(f"{script.name} failed: {done.stderr.strip()[-300:]}")
