from dataclasses import replace

import pytest
import torch

from llgbm.base import Base
from llgbm.delta import activations
from llgbm.errors import AdapterMismatchError, ConfigError
from llgbm.fitting.context_teacher import ContextTeacher
from llgbm.fitting.objectives import TaskObjective
from llgbm.fitting.task_losses import kl_by_label, label_logits, mean_by_row
from llgbm.functional import FunctionalLoRA
from llgbm.packed.batch import Row, TaskGroup, pack
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
    values, indices = found.values, found.indices
    assert found.labels.tolist() == [3, 4, 5]  # after the three labels of the first group
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
    torch.testing.assert_close(found.values, logits.log_softmax(-1).topk(5).values)
    with pytest.raises(AdapterMismatchError, match="taught has no teacher adapter"):
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
        divergence = float(mean_by_row(kl_by_label(logits, found.values, found.indices), pack([BARE])))
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


# behavioural matching in the fit


def test_a_teacher_that_is_held_still_does_not_follow_the_generator(tiny_base: Base) -> None:
    generator, functional = active_generator(), FunctionalLoRA(tiny_base.model)
    still = random_lora(generator.lora, 4)
    teacher = ContextTeacher(tiny_base, functional, still, top=5, layers=(0, 1))
    before, after = teacher(generator, [TAUGHT]), None
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.add_(0.1)
    after = teacher(generator, [TAUGHT])
    assert before is not None
    assert after is not None
    assert torch.equal(before.values, after.values)
    assert before.states.shape == (2, 3, tiny_base.spec.hidden_size)
    alone = activations(
        tiny_base, [[*row.prompt, *row.answer][: len(row.prompt)] for row in IN_CONTEXT], (0, 1), weights=[still]
    )
    torch.testing.assert_close(before.states[:, [0, 2]], alone[0].transpose(0, 1), atol=1e-5, rtol=1e-4)


def test_a_student_in_the_teachers_place_is_at_no_distance_and_the_mean_at_one(tiny_base: Base) -> None:
    teacher = ContextTeacher(tiny_base, FunctionalLoRA(tiny_base.model), top=5, layers=(0, 1))
    lesson = teacher(active_generator(), [TAUGHT])
    assert lesson is not None
    assert torch.equal(lesson.state_distances(lesson.states), torch.zeros(3))
    mean = lesson.states.mean(1, keepdim=True).expand_as(lesson.states)
    assert float(lesson.state_distances(mean).mean()) == pytest.approx(1, rel=1e-4)


def test_matching_states_adds_their_distance_to_the_loss_of_the_rows_taught(tiny_base: Base) -> None:
    generator = active_generator()

    def loss_of(weight: float) -> tuple[float, dict[str, float]]:
        objective = TaskObjective(tiny_base, label_smoothing=0.0, state_matching=weight, state_layers=(0, 1))
        loss, parts = objective(generator, [TAUGHT, PLAIN], 0)
        return float(loss.detach()), parts

    (without, _), (one, parts), (two, _) = loss_of(0.0), loss_of(0.5), loss_of(1.0)
    assert parts["states"] > 0
    assert one - without == pytest.approx((two - without) / 2, rel=1e-4)
    with pytest.raises(ConfigError, match="state_matching needs state_layers"):
        TaskObjective(tiny_base, state_matching=0.5)


def test_matching_states_brings_a_student_to_its_teacher(tiny_base: Base) -> None:
    """The gradient reaches the generator: a few steps on the states bring the bare rows closer to the teacher."""
    generator = active_generator()
    still = random_lora(generator.lora, 4)
    objective = TaskObjective(
        tiny_base, distillation=1.0, state_matching=5.0, state_layers=(0, 1), context_teacher=still
    )
    optimiser = torch.optim.Adam(generator.parameters(), lr=3e-3)
    distances = []
    for step in range(12):
        optimiser.zero_grad()
        loss, parts = objective(generator, [TAUGHT], step)
        loss.backward()
        optimiser.step()
        distances.append(parts["states"])
    assert distances[-1] < 0.8 * distances[0]
