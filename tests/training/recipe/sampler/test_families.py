from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from llgbm.base import Base
from llgbm.errors import ConfigError
from llgbm.packed.batch import TaskGroup
from llgbm.text_encoder import PretrainedTextEncoder
from tests.training.recipe.sampler_runs import CONFIG, TASKS, groups_of, initials, task
from training.recipe.sampler import MAX_SHOTS, TaskSampler

LETTERS = [
    replace(task(f"letters.{name}", verb, answer), family="letters")
    for name, verb, answer in (
        ("last", "give the last letter", lambda w: w[-1]),
        ("second", "give the second letter", lambda w: w[1]),
        ("twice", "write it twice", lambda w: w + w),
    )
]
SIZES = [replace(task("sizes.count", "count the letters", lambda w: str(len(w))), family="sizes")]


def sampler_of(base: Base, encoder: PretrainedTextEncoder, **changes: Any) -> TaskSampler:
    config = replace(CONFIG, **({"family_groups": 3, "sisters": 2} | changes))
    return TaskSampler(TASKS, base, encoder, config, 0, relatives=[*LETTERS, *SIZES])


def texts(base: Base, group: TaskGroup) -> list[str]:
    return [base.tokenizer.decode(row.prompt) for row in group.rows]


def test_sisters_read_the_same_inputs_in_the_same_order(tiny_base: Base, encoder: PretrainedTextEncoder) -> None:
    sampler = sampler_of(tiny_base, encoder, context_fraction=0.0, shared_fraction=0.0)
    pairs = 0
    for step in range(6):
        groups = sampler(step)
        assert len(groups) in (3, 4)  # a family of one task gives one group
        sisters = [group for group in groups if group.task_id.startswith("letters.")]
        assert len({group.task_id for group in sisters}) == len(sisters)
        if len(sisters) == 2:
            one, other = (initials(tiny_base, group) for group in sisters)
            assert one.startswith(other) or other.startswith(one)
            assert sisters[0].rows[0].answer != sisters[1].rows[0].answer
            pairs += 1
    assert pairs >= 3


def test_every_sister_is_drawn_in_time(tiny_base: Base, encoder: PretrainedTextEncoder) -> None:
    drawn = Counter(group.task_id for group in groups_of(sampler_of(tiny_base, encoder), 30))
    assert {t.task_id for t in (*LETTERS, *SIZES, *TASKS)} == set(drawn)


def test_examples_stand_in_the_context_as_earlier_turns_and_are_no_row(
    tiny_base: Base, encoder: PretrainedTextEncoder
) -> None:
    sampler = sampler_of(tiny_base, encoder, context_fraction=1.0, shots_fraction=1.0, shots_tokens=400)
    turns = Counter[int]()
    for group in groups_of(sampler, 12):
        for text in texts(tiny_base, group):
            users = text.split("<|im_start|>user\n")[1:]
            asked = [user.split("<|im_end|>")[0] for user in users]
            assert len(asked) == len(set(asked))
            assert all("\n\n" in turn for turn in asked)  # every turn of the user has the description
            assert text.count("<|im_start|>assistant\n") == len(asked)
            turns[len(asked) - 1] += 1
    assert set(turns) == set(range(1, MAX_SHOTS + 1))


def test_only_some_groups_in_context_carry_examples(tiny_base: Base, encoder: PretrainedTextEncoder) -> None:
    sampler = sampler_of(tiny_base, encoder, context_fraction=0.5, shots_fraction=0.5, shared_fraction=0.0)
    kinds = Counter[str]()
    for group in groups_of(sampler, 60):
        text = texts(tiny_base, group)[0]
        users = text.split("<|im_start|>user\n")[1:]
        kinds["bare" if "\n\n" not in users[-1] else "shots" if len(users) > 1 else "description"] += 1
    total = sum(kinds.values())
    assert kinds["bare"] / total == pytest.approx(0.5, abs=0.1)
    assert kinds["shots"] / total == pytest.approx(0.25, abs=0.1)


def test_the_examples_keep_to_their_budget(tiny_base: Base, encoder: PretrainedTextEncoder) -> None:
    few = sampler_of(tiny_base, encoder, context_fraction=1.0, shots_fraction=1.0, shots_tokens=1)
    for group in groups_of(few, 4):
        assert all(text.count("<|im_start|>user\n") == 1 for text in texts(tiny_base, group))


@pytest.mark.parametrize("relatives", [(), tuple(LETTERS)])
def test_groups_and_tasks_of_families_go_together(
    tiny_base: Base, encoder: PretrainedTextEncoder, relatives: tuple[Any, ...]
) -> None:
    config = replace(CONFIG, family_groups=0 if relatives else 2)
    with pytest.raises(ConfigError, match="tasks of families"):
        TaskSampler(TASKS, tiny_base, encoder, config, 0, relatives=relatives)
