"""One law for both layouts: the packed row of a CPU and the padded rows of a GPU give the same loss and gradients."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from llgbm.base import Base, load_base
from llgbm.config import default_lora
from llgbm.delta import activations, compute_base_activation, encode_probes
from llgbm.evaluation import EvalRow, score_rows
from llgbm.fitting.objectives import TaskObjective
from llgbm.fitting.task_losses import label_logits, sft_loss
from llgbm.functional import FunctionalLoRA
from llgbm.generator import LoRAGenerator, create_generator
from llgbm.lora import LoRAWeights
from llgbm.packed.batch import PackedBatch, Row, TaskGroup, pack
from llgbm.probes import ProbeSet
from tests.fixtures import random_lora
from tests.small_generator import SMALL, active_generator, conditions

HEAD = [1, 2, 3, 4]
GROUPS = [
    [Row([*HEAD, 5, 6], [7, 8]), Row([*HEAD, 9], [4])],
    [Row([5, 5], [6, 6, 6])],
    [Row([*HEAD, 3, 3, 1, 7, 9], [2, 2]), Row([*HEAD, 3, 2, 1], [2]), Row([*HEAD, 8], [1, 9, 9, 2])],
]


def batch_of(count: int) -> list[TaskGroup]:
    given = conditions(2)
    in_context = [Row([11, 12, 13, *row.prompt], row.answer) for row in GROUPS[0]]
    return [
        TaskGroup("taught", given[0], GROUPS[0], in_context),
        TaskGroup("shared", None, GROUPS[1]),
        TaskGroup("plain", given[1], GROUPS[2]),
    ][:count]


def with_padding(batch: PackedBatch) -> PackedBatch:
    return replace(batch, padded=batch.padded_rows())


@pytest.fixture
def padded(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Call it, and every batch takes the layout of a GPU, on this CPU."""
    return lambda: monkeypatch.setattr(PackedBatch, "on", lambda batch, device: with_padding(batch))


def loss_and_gradients(base: Base, generator: LoRAGenerator, batch: list[TaskGroup]) -> tuple[Tensor, list[Tensor]]:
    objective = TaskObjective(base, distillation=0.5, state_matching=0.3, state_layers=(0, base.spec.num_layers - 1))
    generator.zero_grad()
    loss, _ = objective(generator, batch, 0)
    loss.backward()
    return loss.detach(), [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in generator.parameters()]


@pytest.mark.parametrize("count", [1, 3])
def test_a_fit_has_the_same_loss_and_gradients(tiny_base: Base, padded: Callable[[], None], count: int) -> None:
    generator = active_generator()
    loss, gradients = loss_and_gradients(tiny_base, generator, batch_of(count))
    padded()
    other_loss, other_gradients = loss_and_gradients(tiny_base, generator, batch_of(count))
    torch.testing.assert_close(other_loss, loss, atol=1e-5, rtol=0)
    assert sum(float(g.abs().sum()) for g in gradients) > 0
    torch.testing.assert_close(other_gradients, gradients, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("recompute", [False, True])
def test_adapters_of_other_ranks_and_none_share_a_batch(tiny_base: Base, recompute: bool) -> None:
    spec = active_generator().lora
    small = random_lora(spec, 1)
    doubled = type(spec).for_model(tiny_base.spec, rank=2 * spec.rank, alpha=3 * spec.alpha)
    adapters: list[LoRAWeights | None] = [small, None, random_lora(doubled, 2)]
    leaves = [t.requires_grad_() for w in adapters if w is not None for t in w.tensors]
    functional = FunctionalLoRA(tiny_base.model)
    results = []
    for batch in (pack(GROUPS), with_padding(pack(GROUPS))):
        for leaf in leaves:
            leaf.grad = None
        loss = sft_loss(label_logits(tiny_base, functional, batch, adapters, recompute=recompute), batch)
        loss.backward()
        results.append((loss.detach(), [leaf.grad.clone() for leaf in leaves if leaf.grad is not None]))
    (loss, gradients), (other_loss, other_gradients) = results
    torch.testing.assert_close(other_loss, loss, atol=1e-5, rtol=0)
    assert len(gradients) == len(leaves)
    torch.testing.assert_close(other_gradients, gradients, atol=1e-5, rtol=1e-4)


def test_padding_tells_nothing_to_a_row(tiny_base: Base) -> None:
    batch = with_padding(pack(GROUPS))
    assert batch.padded is not None
    rows, longest = batch.padded.input_ids.shape
    assert (rows, longest) == (3, max(batch.lengths))
    there = torch.zeros(rows * longest, dtype=torch.bool)
    there[batch.padded.place] = True
    adapters = [random_lora(active_generator().lora, seed) for seed in (1, 2, 3)]
    functional = FunctionalLoRA(tiny_base.model)
    before = label_logits(tiny_base, functional, batch, adapters)
    batch.padded.input_ids.view(-1)[~there] = 17
    torch.testing.assert_close(label_logits(tiny_base, functional, batch, adapters), before, atol=0, rtol=0)


def test_scores_and_deltas_are_the_same(tiny_base: Base, padded: Callable[[], None]) -> None:
    adapters = [random_lora(active_generator().lora, seed) for seed in (1, 2)]
    rows = [EvalRow(tuple(row.prompt), (tuple(row.answer),)) for row in GROUPS[2]]
    probes = ProbeSet(("one probe", "another and longer probe"), max_length=128)
    ids = encode_probes(tiny_base.tokenizer, probes)
    scores = score_rows(tiny_base, [(adapters[0], rows), (None, rows), (adapters[1], rows[:1])])
    states = activations(tiny_base, ids, weights=adapters)
    plain = compute_base_activation(tiny_base, probes).values
    padded()
    again = score_rows(tiny_base, [(adapters[0], rows), (None, rows), (adapters[1], rows[:1])])
    for mine, other in zip([s for g in scores for s in g], [s for g in again for s in g], strict=True):
        assert other.correct == mine.correct
        assert other.log_likelihood == pytest.approx(mine.log_likelihood, abs=1e-4)
    torch.testing.assert_close(activations(tiny_base, ids, weights=adapters), states, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(compute_base_activation(tiny_base, probes).values, plain, atol=1e-4, rtol=1e-4)


@pytest.mark.real
def test_the_real_base_agrees(real_base: Base, padded: Callable[[], None]) -> None:
    generator = create_generator(real_base.spec, default_lora(real_base.spec), SMALL)
    random = torch.Generator().manual_seed(0)  # rounding of 24 layers differs by up to ten times between draws
    for basis in generator.b0.values():  # a fresh B0 is zero, and all gradients but its own would be too
        torch.nn.init.normal_(basis, std=0.01, generator=random)
    loss, gradients = loss_and_gradients(real_base, generator, batch_of(3))
    padded()
    other_loss, other_gradients = loss_and_gradients(real_base, generator, batch_of(3))
    torch.testing.assert_close(other_loss, loss, atol=1e-4, rtol=1e-4)
    for mine, other in zip(gradients, other_gradients, strict=True):
        assert float((mine - other).norm()) <= 1e-4 * float(mine.norm()) + 1e-6


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_agrees(tiny_base_path: Path, tiny_base: Base) -> None:
    on_gpu = load_base(tiny_base_path, device="cuda")
    loss, gradients = loss_and_gradients(tiny_base, active_generator(), batch_of(3))
    other_loss, other_gradients = loss_and_gradients(on_gpu, active_generator().to("cuda"), batch_of(3))
    torch.testing.assert_close(other_loss.cpu(), loss, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close([g.cpu() for g in other_gradients], gradients, atol=1e-4, rtol=1e-3)
