from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llgbm.base import Base
from llgbm.chat import prompt_ids, task_messages
from llgbm.config import lora_spec
from llgbm.errors import ConfigError
from llgbm.text_encoder import PretrainedTextEncoder
from tests.fixtures import random_lora
from tests.training.sampler_runs import CONFIG, TASKS, content, groups_of, in_context, nearest, sampler_of
from training.sampler import TaskSampler
from training.synthetic.instructions import Instruction


@pytest.fixture(scope="module")
def encoder(tiny_encoder_path: Path) -> PretrainedTextEncoder:
    return PretrainedTextEncoder(tiny_encoder_path).load()


def test_rows_come_in_context_too_where_they_have_none(tiny_base: Base, encoder: PretrainedTextEncoder) -> None:
    for group in groups_of(sampler_of(tiny_base, encoder, shared_fraction=0.2, context_fraction=0.4), 12):
        if in_context(tiny_base, group):
            assert not group.context_rows
        else:
            assert [row.answer for row in group.context_rows] == [row.answer for row in group.rows]
            assert in_context(tiny_base, replace(group, rows=group.context_rows))


def test_borrowed_inputs_come_with_the_description_of_a_task_that_is_not_theirs(
    tiny_base: Base, encoder: PretrainedTextEncoder
) -> None:
    tokenizer = tiny_base.tokenizer
    inputs = {prompt_ids(tokenizer, task_messages(e.input)) for t in TASKS for e in t.train}
    sampler = sampler_of(
        tiny_base, encoder, groups=1, borrowed_groups=2, noise=0.0, warm_start_steps=1, context_fraction=0.0
    )
    assert len(sampler(0)) == 1
    for step in range(1, 6):
        one, *borrowing = sampler(step)
        assert one.labelled
        assert len(borrowing) == 2
        for group in borrowing:
            assert not group.labelled
            assert {row.prompt for row in group.rows} <= inputs
            assert all(len(row.answer) == 1 for row in (*group.rows, *group.context_rows))
            assert len(group.rows) == len(group.context_rows)
            assert in_context(tiny_base, replace(group, rows=group.context_rows))
            assert group.condition is not None
            task_id, cosine = nearest(group.condition, sampler)
            assert task_id == group.task_id
            assert cosine == pytest.approx(1, abs=1e-4)
    assert content(sampler(3)) == content(sampler(3)) != content(sampler(4))
    with pytest.raises(ConfigError, match="borrowed_groups needs distillation"):
        TaskSampler(TASKS, tiny_base, encoder, replace(CONFIG, borrowed_groups=1), 0, with_context_rows=False)


def test_a_borrowing_group_has_a_row_however_long_its_description(
    tiny_base: Base, encoder: PretrainedTextEncoder
) -> None:
    sampler = sampler_of(tiny_base, encoder, groups=1, borrowed_groups=2, context_fraction=1.0, tokens_per_group=1)
    assert all(group.rows for group in groups_of(sampler, 5))


def test_borrowing_groups_read_the_description_too_as_often_as_others_do(
    tiny_base: Base, encoder: PretrainedTextEncoder
) -> None:
    sampler = sampler_of(tiny_base, encoder, groups=1, borrowed_groups=3, context_fraction=0.5)
    borrowing = [group for group in groups_of(sampler, 30) if not group.labelled]
    reading = [group for group in borrowing if in_context(tiny_base, group)]
    assert 0.3 < len(reading) / len(borrowing) < 0.7
    for group in reading:  # the teacher reads the same
        assert [row.prompt for row in group.rows] == [row.prompt for row in group.context_rows]


def test_instructions_without_data_are_described_to_borrowed_inputs(
    tiny_base: Base, encoder: PretrainedTextEncoder
) -> None:
    wordings = "Say whether it is blue.", "Is it blue? Answer yes or no."
    config = replace(CONFIG, groups=1, borrowed_groups=4, instruction_share=0.5, noise=0.0)
    sampler = TaskSampler(TASKS, tiny_base, encoder, config, 0, instructions=[Instruction("blue", wordings)])
    inputs = [example.input for task in TASKS for example in task.train]
    prompts = {
        text: {prompt_ids(tiny_base.tokenizer, task_messages(given, description=text)) for given in inputs}
        for text in wordings
    }
    embeddings = encoder.encode(wordings)
    borrowing = [group for group in groups_of(sampler, 20) if not group.labelled]
    told = [group for group in borrowing if group.task_id == "blue"]
    assert 0.3 < len(told) / len(borrowing) < 0.7
    for group in told:
        [wording] = [text for text in wordings if {row.prompt for row in group.context_rows} <= prompts[text]]
        assert group.condition is not None
        assert torch.equal(group.condition, embeddings[wordings.index(wording)])


def test_instructions_go_with_a_share_for_them(tiny_base: Base, encoder: PretrainedTextEncoder) -> None:
    with pytest.raises(ConfigError, match="instruction_share"):
        sampler_of(tiny_base, encoder, borrowed_groups=1, instruction_share=0.5)
    with pytest.raises(ConfigError, match="instruction_share"):
        TaskSampler(TASKS, tiny_base, encoder, CONFIG, 0, instructions=[Instruction("blue", ("Is it blue?",))])


def test_a_teacher_teaches_only_a_share_of_the_groups_that_have_labels(
    tiny_base: Base, encoder: PretrainedTextEncoder
) -> None:
    bare = [
        group
        for group in groups_of(sampler_of(tiny_base, encoder, taught_fraction=0.3), 40)
        if group.condition is not None and not in_context(tiny_base, group)
    ]
    assert 0.15 < sum(bool(group.context_rows) for group in bare) / len(bare) < 0.45


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
