"""A worker in the environment of llama-cpp-python that decodes on request. Messages are JSON lines.

Arguments: GGUF of the base, GGUF of one LoRA, threads. A request is {"prompt": token ids, "tokens": n}; the answer is
{"tokens": n, "seconds": s}, whose time includes the prompt's pass.
"""

from __future__ import annotations

import importlib
import json
import sys
import time


def main(model: str, lora: str, threads: str) -> None:
    library = importlib.import_module("llama_cpp")  # by name, because it is not a dependency of this project
    count = int(threads)
    llama = library.Llama(model, lora_path=lora, n_threads=count, n_threads_batch=count, n_ctx=1024, verbose=False)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        llama.reset()
        start, made = time.perf_counter(), 0
        for _ in llama.generate(request["prompt"], temp=0.0, top_k=1, reset=True):
            made += 1
            if made == request["tokens"]:
                break
        print(json.dumps({"tokens": made, "seconds": time.perf_counter() - start}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
