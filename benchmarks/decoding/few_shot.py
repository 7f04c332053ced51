"""Compares an adapter with examples in the prompt: number of prompt tokens, and time to a short answer.

All arms use the int8 base and the same inputs of procedural tasks. One arm has an adapter and the bare input. The other
arms have no adapter, and three of the task's training rows in the conversation, with and without its description in
each turn. No arm caches the keys and values of a prompt. A server with such a cache would compute the examples only
once.
"""

from __future__ import annotations

import random
import statistics
from functools import partial

from benchmarks.measuring.measure import Result, interleaved, milliseconds, over, result
from benchmarks.measuring.workbench import Workbench
from llgbm.chat import prompt_ids, task_messages
from llgbm.decoding.decoder import generate
from llgbm.decoding.sampling import SamplingParams
from llgbm.lora import LoRAWeights
from training.tasks.procedural_tasks import synthetic_tasks

_TASKS, _SHOTS, _TOKENS = 12, 3, 8


def run(bench: Workbench) -> list[Result]:
    tasks = random.Random(0).sample(synthetic_tasks(), bench.times(_TASKS))
    params = SamplingParams(max_tokens=_TOKENS, stop_token_ids=())
    tokenizer = bench.int8.tokenizer
    prompts: dict[str, list[list[int]]] = {"adapter": [], "3 examples": [], "description and 3 examples": []}
    for task in tasks:
        given, text = task.test[0].input, task.descriptions[0]
        shots = [(e.input, e.output) for e in task.train[:_SHOTS]]
        for arm, messages in (
            ("adapter", task_messages(given)),
            ("3 examples", task_messages(given, examples=shots)),
            ("description and 3 examples", task_messages(given, description=text, examples=shots)),
        ):
            prompts[arm].append(list(prompt_ids(tokenizer, messages)))

    def answer(arm: str, adapter: LoRAWeights | None) -> None:
        for prompt in prompts[arm]:
            generate(bench.int8, [prompt], adapter, params)

    arms = {arm: partial(answer, arm, bench.adapters[0] if arm == "adapter" else None) for arm in prompts}
    seconds = interleaved(arms, n=bench.times(5))
    each = milliseconds({arm: [s / len(tasks) for s in times] for arm, times in seconds.items()})
    lengths = {arm: [float(len(prompt)) for prompt in found] for arm, found in prompts.items()}
    saved = statistics.mean(lengths["3 examples"]) - statistics.mean(lengths["adapter"])
    note = (
        f"Answers of {_TOKENS} tokens to an input of each of {len(tasks)} tasks, one request at a time, no cache of "
        f"prompts. Three examples are {saved:.0f} more prompt tokens a request on average."
    )
    return [
        result(
            f"time to a short answer, {arm} in the prompt over an adapter",
            {name: each[name] for name in (arm, "adapter")},
            over(arm, "adapter"),
            arm_unit="ms",
            note=note,
        )
        for arm in ("3 examples", "description and 3 examples")
    ] + [
        result(
            "prompt tokens, description and 3 examples over an adapter",
            lengths,
            over("description and 3 examples", "adapter"),
            arm_unit="tokens",
            note="The chat template's own tokens are in all of them.",
        )
    ]
