"""Refining an adapter on 16 examples of about 40 tokens, against PEFT with the Trainer of transformers.

All arms start from the same generated adapter and make the same number of steps with the same number of rows on the
same examples; ours has the description in the context of half of the rows in addition. The Trainer pads its rows, and
its base is in float32 or in bfloat16. Nothing is held out in the ratio; the second result is the whole call with its
defaults, held-out examples included.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import Trainer, TrainingArguments

from benchmarks.measuring.measure import Result, interleaved, over, result
from benchmarks.measuring.workbench import Workbench
from llgbm.base import load_base, storage_of
from llgbm.chat import answer_ids, prompt_ids
from llgbm.fitting.memory import keep_freed_memory
from llgbm.linears.frozen_linear import fastest_training_storage
from llgbm.packed.batch import Row
from llgbm.refining.refine import refine
from llgbm.refining.settings import RefineConfig, RefineRow

_TARGET_RATIO, _TARGET_SECONDS = 6.0, 30.0
_IGNORED = -100
DESCRIPTION = "Say which team the message is for: delivery, billing, returns or technical."
_MESSAGES = (
    ("The parcel was due last Monday and the driver has still not rung our bell.", "delivery"),
    ("My card was charged twice for the same pair of shoes this morning.", "billing"),
    ("The jacket is too small, and I would like to send it back before Friday.", "returns"),
    ("The app closes as soon as I press the button that opens my basket.", "technical"),
)
_ENDINGS = (
    " I have written to you about this before and nobody has answered.",
    " Please tell me until when I may expect an answer from your team.",
    " I am travelling next week, so the matter is rather urgent for me.",
    " My neighbour had the same trouble with you in spring, by the way.",
)
EXAMPLES = tuple((text + end, team) for text, team in _MESSAGES for end in _ENDINGS)
"""16 messages of about 40 tokens, and their teams."""


def run(bench: Workbench) -> list[Result]:
    keep_freed_memory()  # as the worker of the service does
    storage = fastest_training_storage()
    base = load_base(bench.base_name, storage=storage)
    config = RefineConfig(description=DESCRIPTION, hold_out=False, max_steps=bench.tokens(20))
    examples = [RefineRow.of(text, team) for text, team in EXAMPLES]
    start = bench.adapters[0]
    losses: dict[str, float] = {}

    def ours() -> None:
        losses["refine"] = statistics.fmean(refine(base, start, examples, config).losses)

    arms: dict[str, Callable[[], object]] = {
        "refine": ours,
        "PEFT float32": _trainer(bench, examples, config, losses, bfloat16=False),
        "PEFT bfloat16": _trainer(bench, examples, config, losses, bfloat16=True),
    }
    times = bench.times(3)
    seconds = interleaved(arms, n=times, warm_up=0)
    whole = interleaved(
        {"refine": lambda: refine(base, start, examples, replace(config, hold_out=True))}, n=times, warm_up=0
    )
    tokens = [
        len(base.tokenizer(row.messages[0]["content"])["input_ids"]) + len(answer_ids(base.tokenizer, row.answer))
        for row in examples
    ]
    note = (
        f"{len(examples)} examples of {min(tokens)} to {max(tokens)} tokens, template not counted; "
        f"{config.max_steps} steps of {config.rows_per_step} rows; our base in {storage_of(base)}. Mean loss of the "
        f"steps: {', '.join(f'{loss:.3f} ({arm})' for arm, loss in losses.items())}."
    )
    rivals = [arm for arm in arms if arm != "refine"]
    best = min(rivals, key=lambda arm: min(seconds[arm]))
    return [
        result(
            "seconds of PEFT with the Trainer over refining, equal steps, the faster dtype of the Trainer's base",
            seconds,
            over(best, "refine"),
            arm_unit="s",
            target=_TARGET_RATIO,
            note=note,
        ),
        result(
            "seconds to refine an adapter on 16 examples of 40 tokens, held-out examples included",
            whole,
            lambda medians: medians["refine"],
            unit="s",
            arm_unit="s",
            higher=False,
            target=_TARGET_SECONDS,
            note=note,
        ),
    ]


def _trainer(
    bench: Workbench, examples: Sequence[RefineRow], config: RefineConfig, losses: dict[str, float], *, bfloat16: bool
) -> Callable[[], None]:
    tokenizer = bench.float32.tokenizer
    rows = [Row(prompt_ids(tokenizer, row.messages), answer_ids(tokenizer, row.answer)) for row in examples]
    data: Any = [
        {
            "input_ids": [*row.prompt, *row.answer],
            "labels": [_IGNORED] * len(row.prompt) + list(row.answer),
        }
        for row in rows
    ]
    arm = "PEFT bfloat16" if bfloat16 else "PEFT float32"
    settings = TrainingArguments(
        output_dir=str(bench.scratch / arm.replace(" ", "-")),
        max_steps=config.max_steps,
        per_device_train_batch_size=config.rows_per_step,
        learning_rate=config.learning_rate,
        max_grad_norm=config.max_grad_norm,
        use_cpu=True,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )

    def run() -> None:
        model = bench.peft_model(1).to(torch.bfloat16 if bfloat16 else torch.float32)
        for name, parameter in model.named_parameters():
            if "lora_" in name:  # the adapter is trained in float32, as PEFT keeps it on a base in bfloat16
                parameter.data = parameter.data.float()
                parameter.requires_grad_()
        trainer = Trainer(model=model, args=settings, train_dataset=data, data_collator=_padded)
        losses[arm] = trainer.train().training_loss

    return run


def _padded(rows: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, Any]:
    """A batch as the Trainer's collators make it, padded at the right."""
    width = max(len(row["input_ids"]) for row in rows)
    fill = {"input_ids": 0, "labels": _IGNORED}
    batch = {
        name: torch.tensor([[*row[name], *[value] * (width - len(row[name]))] for row in rows])
        for name, value in fill.items()
    }
    batch["attention_mask"] = torch.tensor([[int(i < len(row["input_ids"])) for i in range(width)] for row in rows])
    return batch
