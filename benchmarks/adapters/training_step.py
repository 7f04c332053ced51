"""A training step of one LoRA on the same rows: ours without padding, against PEFT's with padding.

All arms start from the same adapter and minimise the mean cross entropy of the answer tokens with AdamW. Our step packs
the rows, stores the common prefix of their prompts once, and computes logits only at label positions. int8_training and
bfloat16 are storages of the frozen Linears; the shipped generator was trained with both.

Then a step of `python -m training fit` against its limit: the products of the frozen Linears alone, forward and for the
gradients of their inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.measuring.measure import Result, interleaved, over, rates, result
from benchmarks.measuring.workbench import Workbench
from llgbm.base import Base, load_base, storage_of
from llgbm.chat import answer_ids, prompt_ids, task_messages
from llgbm.checkpoint import load_generator
from llgbm.fitting.memory import keep_freed_memory
from llgbm.fitting.objectives import TaskObjective
from llgbm.fitting.task_losses import label_logits
from llgbm.functional import FunctionalLoRA
from llgbm.linears.frozen_linear import fastest_training_storage
from llgbm.lora import LoRAWeights
from llgbm.packed.batch import Row, TaskGroup, pack

_ROWS = 24
_GROUPS = 20
_RATE = 1e-4
_WORDS = (
    "dog", "house", "river", "mountain", "bread", "winter", "table", "music",
    "garden", "window", "letter", "paper", "bridge", "forest", "island", "school",
)  # fmt: skip
_SENTENCES = (
    "She goes to the market every Saturday to buy fresh bread and flowers.",
    "The old man sits on the bench.",
    "My brother and his friends play football in the park behind the school whenever the weather is good.",
    "It rains.",
    "We are planning a long journey through the mountains next summer.",
    "The train leaves at nine, but the passengers wait on the platform from eight o'clock on.",
    "I read.",
    "Children learn quickly when they are curious about what they see.",
)


def run(bench: Workbench) -> list[Result]:
    keep_freed_memory()
    return [*_against_peft(bench), _fit_step(bench)]


def _against_peft(bench: Workbench) -> list[Result]:
    rows = _rows(bench.float32)
    bases = {
        "float32": bench.float32,
        "bfloat16": load_base(bench.base_name, storage="bfloat16"),
        "int8_training": load_base(bench.base_name, storage="int8_training"),
    }
    losses: dict[str, list[float]] = {arm: [] for arm in (*bases, "PEFT")}
    gradients = {arm: _gradient(bench, base, rows) for arm, base in bases.items()}
    steps = {arm: _ours(bench, base, rows, losses[arm]) for arm, base in bases.items()}
    steps["PEFT"] = _peft(bench, rows, losses["PEFT"])
    speeds = rates(interleaved(steps, n=bench.times(5)), _ROWS)
    apart = {arm: max(abs(a - b) for a, b in zip(losses[arm], losses["PEFT"], strict=True)) for arm in losses}
    width = max(len(row.prompt) + len(row.answer) for row in rows)
    useful = sum(len(row.prompt) + len(row.answer) for row in rows)
    cosines = {arm: float(F.cosine_similarity(g, gradients["float32"], dim=0)) for arm, g in gradients.items()}
    note = (
        f"{_ROWS} rows with {useful} tokens, {_ROWS * width} with padding, {pack([rows]).num_tokens} packed. Losses of "
        f"{len(losses['PEFT'])} steps, {losses['PEFT'][0]:.3f} to {losses['PEFT'][-1]:.3f} nats, differ from PEFT's by "
        f"at most {apart['float32']:.4f} (float32), {apart['bfloat16']:.4f} (bfloat16) and "
        f"{apart['int8_training']:.4f} (int8_training). Cosine of the adapter's gradient with that of float32: "
        f"{cosines['bfloat16']:.4f} (bfloat16) and {cosines['int8_training']:.4f} (int8_training)."
    )
    return [
        result(
            f"useful training rows/s over PEFT's step with padding, {arm} storage",
            {name: speeds[name] for name in (arm, "PEFT")},
            over(arm, "PEFT"),
            arm_unit="rows/s",
            target=target,
            note=note,
        )
        for arm, target in (("int8_training", 3.0), ("bfloat16", None), ("float32", None))
    ]


def _fit_step(bench: Workbench) -> Result:
    base = load_base(bench.base_name, storage=fastest_training_storage())
    generator = load_generator(bench.checkpoint_folder).generator.requires_grad_(True)
    generator.trunk_dtype = dtype = next(base.model.parameters()).dtype
    objective, rows = TaskObjective(base), _rows(base)
    conditions = F.normalize(
        torch.randn(_GROUPS, generator.input_size, generator=torch.Generator().manual_seed(0)), dim=1
    )
    batch = [TaskGroup(str(i), c, [rows[(i + j) % _ROWS] for j in range(4)]) for i, c in enumerate(conditions)]
    tokens = pack([group.rows for group in batch]).num_tokens
    labels = sum(len(row.answer) for group in batch for row in group.rows)

    def step() -> None:
        objective(generator, batch, 0)[0].backward()
        generator.zero_grad(set_to_none=True)

    linears: list[tuple[Any, int]] = [
        (base.model.get_submodule(module.name), tokens) for module in generator.lora.modules
    ]
    linears.append((base.model.get_submodule("lm_head"), labels))

    def products() -> None:
        for linear, count in linears:
            x = torch.ones(count, linear.in_features, dtype=dtype, requires_grad=True)
            y = linear(x)
            torch.autograd.grad(y, x, y.detach())

    speeds = rates(interleaved({"fit step": step, "products": products}, n=bench.times(9)), tokens)
    return result(
        "tokens/s of a fit step over its limit, the products of the frozen Linears alone",
        speeds,
        over("fit step", "products"),
        arm_unit="tokens/s",
        target=0.6,
        note=f"{_GROUPS} groups with an adapter each, {tokens} packed tokens, {labels} labels; base in "
        f"{storage_of(base)}. The step is the adapters, the loss and all gradients, without the optimisers.",
    )


def _rows(base: Base) -> list[Row]:
    pairs = [(word, word.upper()) for word in _WORDS] + [(text, text.swapcase()) for text in _SENTENCES]
    return [
        Row(prompt_ids(base.tokenizer, task_messages(given)), answer_ids(base.tokenizer, wanted))
        for given, wanted in pairs[:_ROWS]
    ]


def _gradient(bench: Workbench, base: Base, rows: list[Row]) -> Tensor:
    """The gradient of the loss with respect to all A and B, one float64 vector."""
    weights = bench.adapters[0].map(lambda t: t.detach().clone().requires_grad_())
    loss = _loss(base, FunctionalLoRA(base.model), rows, weights)
    found = torch.autograd.grad(loss, weights.tensors)
    return torch.cat([t.flatten().double() for t in found])


def _loss(base: Base, functional: FunctionalLoRA, rows: list[Row], weights: LoRAWeights) -> Tensor:
    batch = pack([rows])
    return F.cross_entropy(label_logits(base, functional, batch, [weights]), batch.labels)


def _ours(bench: Workbench, base: Base, rows: list[Row], losses: list[float]) -> Callable[[], None]:
    weights = bench.adapters[0].map(lambda t: t.detach().clone().requires_grad_())
    optimiser = torch.optim.AdamW(weights.tensors, lr=_RATE, weight_decay=0.0)
    functional = FunctionalLoRA(base.model)

    def step() -> None:
        _update(_loss(base, functional, rows, weights), optimiser, losses)

    return step


def _peft(bench: Workbench, rows: list[Row], losses: list[float]) -> Callable[[], None]:
    model: Any = bench.peft_model(1)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=_RATE, weight_decay=0.0)
    width = max(len(row.prompt) + len(row.answer) for row in rows)
    ids, labels = torch.zeros(len(rows), width, dtype=torch.long), torch.full((len(rows), width), -100)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        whole = torch.tensor([*row.prompt, *row.answer])
        ids[i, : len(whole)], mask[i, : len(whole)] = whole, 1
        labels[i, len(row.prompt) : len(whole)] = whole[len(row.prompt) :]

    def step() -> None:
        _update(model(input_ids=ids, attention_mask=mask, labels=labels).loss, optimiser, losses)

    return step


def _update(loss: Tensor, optimiser: torch.optim.Optimizer, losses: list[float]) -> None:
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    optimiser.step()
    losses.append(float(loss.detach()))
