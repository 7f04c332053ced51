from dataclasses import replace

from llgbm.base import Base
from llgbm.config import lora_spec
from llgbm.text_encoder import PretrainedTextEncoder
from tests.fixtures import random_lora
from tests.training.recipe.sampler_runs import CONFIG, TASKS, groups_of, in_context, sampler_of
from training.recipe.sampler import TaskSampler


def test_rows_come_in_context_too_where_they_have_none(tiny_base: Base, encoder: PretrainedTextEncoder) -> None:
    for group in groups_of(sampler_of(tiny_base, encoder, shared_fraction=0.2, context_fraction=0.4), 12):
        if in_context(tiny_base, group):
            assert not group.context_rows
        else:
            assert [row.answer for row in group.context_rows] == [row.answer for row in group.rows]
            assert in_context(tiny_base, replace(group, rows=group.context_rows))


def test_rows_to_distil_from_a_tasks_own_adapter_are_the_bare_ones(
    tiny_base: Base, encoder: PretrainedTextEncoder
) -> None:
    own = random_lora(lora_spec("tiny"), 0)
    config = replace(CONFIG, context_fraction=0.3, shared_fraction=0.2)
    sampler = TaskSampler(TASKS, tiny_base, encoder, config, 0, teachers={TASKS[0].task_id: own})
    groups = [group for step in range(20) for group in sampler(step)]
    taught = [group for group in groups if group.context_rows]
    assert taught
    assert {group.task_id for group in taught} == {TASKS[0].task_id}
    for group in taught:
        assert group.teacher is own
        assert group.context_rows == group.rows
        assert group.condition is not None
        assert not in_context(tiny_base, group)
