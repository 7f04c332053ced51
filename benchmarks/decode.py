"""Decoding with one generated adapter against the plain base, and against transformers' `generate` with PEFT."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from benchmarks.measure import Result, interleaved, summary
from llgbm.base import load_base
from llgbm.chat import prompt_ids, task_messages
from llgbm.checkpoint import load_generator
from llgbm.decoding import generate
from llgbm.peft_io import save_peft
from llgbm.sampling import SamplingParams

TOKENS = 16


def run(checkpoint: Path, *, n: int) -> list[Result]:
    loaded = load_generator(checkpoint)
    adapter = loaded.generator.shared_adapter().detach()
    base = load_base(loaded.manifest.base_id)
    other: Any = load_base(loaded.manifest.base_id).model
    prompt = list(prompt_ids(base.tokenizer, task_messages("Tell me a long story about a house.")))
    params = SamplingParams(max_tokens=TOKENS)
    ids = torch.tensor([prompt])
    with tempfile.TemporaryDirectory() as folder:
        save_peft(adapter, Path(folder) / "adapter", base_id=loaded.manifest.base_id)
        peft: Any = PeftModel.from_pretrained(other, str(Path(folder) / "adapter")).eval()

    def with_peft() -> None:
        with torch.inference_mode():
            peft.generate(input_ids=ids, max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False)

    made: dict[str, int] = {}

    def ours(name: str, weights: Any) -> None:
        made[name] = len(generate(base, [prompt], [weights], params)[0])

    seconds = interleaved(
        {"plain": lambda: ours("plain", None), "adapter": lambda: ours("adapter", adapter), "PEFT generate": with_peft},
        n=n,
        warm_up=1,
    )
    tokens = {"plain": made["plain"], "adapter": made["adapter"], "PEFT generate": TOKENS}

    def rate(medians: dict[str, float], arm: str) -> float:
        return tokens[arm] / medians[arm]

    return [
        summary(
            "decode, one adapter over the plain base",
            seconds, lambda m: rate(m, "adapter") / rate(m, "plain"), unit="ratio of tokens/s", higher=True,
        ),
        summary(
            "decode, one adapter over PEFT generate, both float32",
            seconds, lambda m: rate(m, "adapter") / rate(m, "PEFT generate"), unit="ratio of tokens/s", higher=True,
        ),
    ]  # fmt: skip
