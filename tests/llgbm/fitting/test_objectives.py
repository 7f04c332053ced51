from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from llgbm.base import Base, load_base
from llgbm.delta import DeltaMeter
from llgbm.errors import AdapterMismatchError, ConfigError
from llgbm.fitting.objectives import TaskObjective, generated_groups
from llgbm.fitting.task_losses import label_logits, sft_loss
from llgbm.functional import FunctionalLoRA
from llgbm.matching.losses import DeltaOnlyLoss
from llgbm.packed.batch import Row, TaskGroup, pack
from llgbm.probes import create_generic_probes
from tests.small_generator import active_generator, conditions

CONDITIONS = conditions(2)
UPPER = TaskGroup("upper", CONDITIONS[0], [Row([1, 2, 3], [4, 5]), Row([1, 2, 9], [7])])
COUNT = TaskGroup("count", CONDITIONS[1], [Row([5, 5], [6])])
SHARED = TaskGroup("shared", None, [Row([3, 3, 1], [2, 2]), Row([3, 4], [1]), Row([8], [9])])
BATCH = [UPPER, SHARED, COUNT]


def gradients(loss: Tensor, generator: torch.nn.Module) -> dict[str, Tensor]:
    generator.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in generator.named_parameters() if p.grad is not None}


def test_groups_without_a_condition_come_last_and_have_the_shared_adapter() -> None:
    generator = active_generator()
    adapters, rows = generated_groups(generator, BATCH)
    assert rows == [list(UPPER.rows), list(COUNT.rows), list(SHARED.rows)]
    expected = [*generator(CONDITIONS), generator.shared_adapter()]
    assert len(adapters) == 3
    for adapter, wanted in zip(adapters, expected, strict=True):
        for name in adapter.spec.names:
            torch.testing.assert_close(adapter.a[name], wanted.a[name], atol=1e-6, rtol=0)
            torch.testing.assert_close(adapter.b[name], wanted.b[name], atol=1e-6, rtol=0)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_that_of_the_answers_under_each_groups_own_adapter(tiny_base: Base, smoothing: float) -> None:
    generator = active_generator()
    loss, parts = TaskObjective(tiny_base, label_smoothing=smoothing)(generator, BATCH, 0)
    functional = FunctionalLoRA(tiny_base.model)
    adapters = {
        "upper": generator(CONDITIONS)[0],
        "count": generator(CONDITIONS)[1],
        "shared": generator.shared_adapter(),
    }
    losses = []
    for group in BATCH:
        for row in group.rows:
            packed = pack([[row]])
            logits = label_logits(tiny_base, functional, packed, [adapters[group.task_id]])
            losses.append(sft_loss(logits, packed, label_smoothing=smoothing))
    torch.testing.assert_close(loss, torch.stack(losses).mean(), atol=1e-4, rtol=0)
    assert parts["sft"] == pytest.approx(float(loss.detach()))
    assert parts["rows"] == 6
    assert parts["tokens"] == pack(generated_groups(generator, BATCH)[1]).num_tokens


@pytest.mark.parametrize("recompute", [False, True])
def test_a_batch_is_the_weighted_mean_of_its_parts(tiny_base: Base, recompute: bool) -> None:
    generator = active_generator()
    objective = TaskObjective(tiny_base, recompute=recompute)
    whole = objective(generator, BATCH, 0)[0]
    parts = [([UPPER], 2.0), ([SHARED, COUNT], 4.0)]
    assert objective.weight(BATCH) == 6
    assert [objective.weight(part) for part, _ in parts] == [weight for _, weight in parts]
    mixed = torch.stack([weight * objective(generator, part, 0)[0] for part, weight in parts]).sum() / 6
    torch.testing.assert_close(whole, mixed, atol=1e-5, rtol=0)
    expected, found = gradients(whole, generator), gradients(mixed, generator)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-3 * float(gradient.abs().max()), rtol=0)


def test_the_delta_loss_is_added_with_its_weight_and_counts_by_rows(tiny_base: Base) -> None:
    generator, meter = active_generator(), DeltaMeter(tiny_base, create_generic_probes(3, max_length=192))
    with torch.no_grad():
        teachers = meter.deltas(active_generator(seed=1)(CONDITIONS))
    batch = [replace(UPPER, delta=teachers[0]), SHARED, replace(COUNT, delta=teachers[1])]
    with torch.no_grad():
        made = meter.deltas(generator(CONDITIONS))
    each = [float(DeltaOnlyLoss()(one[None], teacher[None])[0]) for one, teacher in zip(made, teachers, strict=True)]
    objective = TaskObjective(tiny_base, matching=0.5, meter=meter)
    loss, parts = objective(generator, batch, 0)
    assert parts["delta"] == pytest.approx((2 * each[0] + 1 * each[1]) / 6, rel=1e-4)
    plain, without = TaskObjective(tiny_base)(generator, batch, 0)
    assert without["delta"] == 0
    assert float((loss - plain).detach()) == pytest.approx(0.5 * parts["delta"], abs=1e-5)
    pieces = [([batch[0]], 2.0), ([batch[1], batch[2]], 4.0)]
    mixed = torch.stack([weight * objective(generator, piece, 0)[0] for piece, weight in pieces]).sum() / 6
    expected, found = gradients(loss, generator), gradients(mixed, generator)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-3 * float(gradient.abs().max()), rtol=0)


def test_matching_needs_a_meter(tiny_base: Base) -> None:
    with pytest.raises(ConfigError, match="needs a DeltaMeter"):
        TaskObjective(tiny_base, matching=1.0)


def test_gradients_reach_every_parameter_and_only_the_generators(tiny_base: Base) -> None:
    generator = active_generator()
    objective = TaskObjective(tiny_base)
    reached = gradients(objective(generator, BATCH, 0)[0], generator)
    assert sorted(reached) == sorted(name for name, _ in generator.named_parameters())
    assert all(bool(gradient.any()) for gradient in reached.values())
    assert list(objective.modules()) == []
    assert all(p.grad is None for p in tiny_base.model.parameters())


def test_shared_groups_train_the_shared_part_alone(tiny_base: Base) -> None:
    generator = active_generator()
    reached = gradients(TaskObjective(tiny_base)(generator, [SHARED], 0)[0], generator)
    assert {name.partition(".")[0] for name in reached} == {"a0", "b0", "q0", "p0"}


@pytest.mark.parametrize("batch", [[], [TaskGroup("empty", None)]])
def test_a_batch_without_rows_is_refused(tiny_base: Base, batch: list[TaskGroup]) -> None:
    with pytest.raises(AdapterMismatchError, match=r"nothing to pack|every group needs a row"):
        TaskObjective(tiny_base)(active_generator(), batch, 0)


def test_a_base_that_passes_no_gradients_is_refused(tiny_base_path: Path) -> None:
    with pytest.raises(ConfigError, match="load it with int8_training"):
        TaskObjective(load_base(tiny_base_path, storage="int8"))
