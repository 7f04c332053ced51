from dataclasses import replace

import pytest
import torch

from llgbm.base import Base
from llgbm.errors import AdapterMismatchError
from llgbm.fitting.context_teacher import ContextTeacher
from llgbm.fitting.objectives import TaskObjective
from llgbm.fitting.task_losses import kl_by_label, label_logits, mean_by_row
from llgbm.functional import FunctionalLoRA
from llgbm.packing import Row, TaskGroup, pack
from tests.fixtures import random_lora
from tests.small_generator import active_generator, conditions

CONDITIONS = conditions(2)
BARE = [Row([1, 2, 3], [4, 5]), Row([1, 2, 9], [7])]
IN_CONTEXT = [Row([8, 8, 8, 1, 2, 3], [4, 5]), Row([8, 8, 8, 1, 2, 9], [7])]
TAUGHT = TaskGroup("taught", CONDITIONS[0], BARE, IN_CONTEXT)
PLAIN = TaskGroup("plain", CONDITIONS[1], [Row([5, 5], [6, 6, 6])])
SHARED = TaskGroup("shared", None, [Row([3, 3, 1], [2, 2])])


def test_the_target_is_what_the_teacher_says_with_the_description_in_its_context(tiny_base: Base) -> None:
    generator, functional = active_generator(), FunctionalLoRA(tiny_base.model)
    found = ContextTeacher(tiny_base, functional, top=5)(generator, [PLAIN, TAUGHT, SHARED])
    assert found is not None
    places, values, indices = found
    assert places.tolist() == [3, 4, 5]  # after the three labels of the first group
    with torch.no_grad():
        logits = label_logits(tiny_base, functional, pack([IN_CONTEXT]), [generator.shared_adapter()])
    expected = logits.log_softmax(-1).topk(5)
    torch.testing.assert_close(values, expected.values)
    assert torch.equal(indices, expected.indices)
    assert not values.requires_grad


def test_the_target_may_be_what_the_groups_own_adapter_says_of_the_bare_input(tiny_base: Base) -> None:
    generator, functional = active_generator(), FunctionalLoRA(tiny_base.model)
    own = random_lora(generator.lora, 3)
    group = TaskGroup("own", CONDITIONS[0], BARE, BARE, own)
    teacher = ContextTeacher(tiny_base, functional, "adapter", top=5)
    found = teacher(generator, [PLAIN, group])
    assert found is not None
    with torch.no_grad():
        logits = label_logits(tiny_base, functional, pack([BARE]), [own])
    torch.testing.assert_close(found[1], logits.log_softmax(-1).topk(5).values)
    with pytest.raises(AdapterMismatchError, match="taught has no adapter to be taught by"):
        teacher(generator, [TAUGHT])


def test_without_rows_in_context_there_is_nothing_to_learn(tiny_base: Base) -> None:
    teacher = ContextTeacher(tiny_base, FunctionalLoRA(tiny_base.model))
    assert teacher(active_generator(), [PLAIN, SHARED]) is None


def test_other_answers_in_context_are_refused(tiny_base: Base) -> None:
    wrong = replace(TAUGHT, context_rows=[IN_CONTEXT[1], IN_CONTEXT[0]])
    with pytest.raises(AdapterMismatchError, match="rows of taught have other answers in context"):
        ContextTeacher(tiny_base, FunctionalLoRA(tiny_base.model))(active_generator(), [wrong])


def test_distillation_is_a_share_of_the_loss_of_the_rows_that_have_a_teacher(tiny_base: Base) -> None:
    generator, functional = active_generator(), FunctionalLoRA(tiny_base.model)

    def loss(batch: list[TaskGroup], share: float) -> float:
        return float(TaskObjective(tiny_base, label_smoothing=0.0, distillation=share)(generator, batch, 0)[0].detach())

    found = ContextTeacher(tiny_base, functional)(generator, [TAUGHT])
    assert found is not None
    with torch.no_grad():
        logits = label_logits(tiny_base, functional, pack([BARE]), generator(CONDITIONS[:1]))
        divergence = float(mean_by_row(kl_by_label(logits, *found[1:]), pack([BARE])))
    assert loss([TAUGHT], 1.0) == pytest.approx(divergence, abs=1e-4)
    assert loss([TAUGHT], 0.25) == pytest.approx(0.25 * divergence + 0.75 * loss([TAUGHT], 0.0), abs=1e-4)
    assert loss([PLAIN, SHARED], 1.0) == pytest.approx(loss([PLAIN, SHARED], 0.0), abs=1e-6)
    mixed = (2 * loss([TAUGHT], 0.5) + loss([SHARED], 0.0) + loss([PLAIN], 0.0)) / 4
    assert loss([SHARED, TAUGHT, PLAIN], 0.5) == pytest.approx(mixed, abs=1e-4)


def test_learning_from_the_teacher_leads_to_its_predictions(tiny_base: Base) -> None:
    generator = active_generator()
    objective = TaskObjective(tiny_base, distillation=1.0, context_teacher="adapter")
    group = replace(TAUGHT, teacher=random_lora(generator.lora, 3))
    optimiser = torch.optim.Adam(generator.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        optimiser.zero_grad()
        loss, parts = objective(generator, [group], 0)
        loss.backward()
        optimiser.step()
        losses.append(parts["kl"])
    assert losses[-1] < 0.5 * losses[0]
