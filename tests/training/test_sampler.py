from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llgbm.base import Base
from llgbm.batches import TaskGroup
from llgbm.chat import answer_ids, prompt_ids, task_messages
from llgbm.config import lora_spec
from llgbm.errors import ConfigError
from llgbm.packing import pack
from llgbm.text_encoder import PretrainedTextEncoder
from tests.fixtures import random_lora
from training.sampler import SamplerConfig, TaskSampler
from training.synthetic.instructions import Instruction
from training.tasks import Example, Task

WORDS = ("cat", "dog", "cow", "pig", "hen", "owl", "ant", "bee", "fox", "bat", "rat", "eel")
TEST_WORDS = ("emu", "yak", "ape", "cod")


def task(name: str, verb: str, answer: Any) -> Task:
    rows, held_back = ([Example(word, answer(word)) for word in words] for words in (WORDS, TEST_WORDS))
    wordings = tuple(f"{start} {verb}." for start in ("Now", "Please", "You", "I want you to", "Your task:"))
    return Task(
        name, "words", "made for tests", "CC0-1.0", wordings, "exact_match", None, tuple(rows), tuple(held_back)
    )


TASKS = [
    task("upper", "write in capitals", str.upper),
    task("first", "give the first letter", lambda w: w[0]),
    task("reverse", "spell it backwards", lambda w: w[::-1]),
]
CONFIG = SamplerConfig(groups=4, tokens_per_group=220, max_row_tokens=100)


class Recorder:
    """The tiny encoder, and all that it was given."""

    def __init__(self, encoder: PretrainedTextEncoder) -> None:
        self.encoder, self.seen = encoder, set[str]()

    def encode(self, texts: Sequence[str]) -> Tensor:
        self.seen.update(texts)
        return self.encoder.encode(texts)


@pytest.fixture(scope="module")
def encoder(tiny_encoder_path: Path) -> PretrainedTextEncoder:
    return PretrainedTextEncoder(tiny_encoder_path).load()


def sampler_of(base: Base, encoder: Any, seed: int = 0, tasks: Sequence[Task] = TASKS, **changes: Any) -> TaskSampler:
    return TaskSampler(tasks, base, encoder, replace(CONFIG, **changes), seed)


def content(batch: Sequence[TaskGroup]) -> list[tuple[Any, ...]]:
    return [
        (
            group.task_id,
            None if group.condition is None else tuple(group.condition.tolist()),
            [(tuple(row.prompt), tuple(row.answer)) for row in group.rows],
        )
        for group in batch
    ]


def groups_of(sampler: TaskSampler, steps: int) -> list[TaskGroup]:
    return [group for step in range(steps) for group in sampler(step)]


def in_context(base: Base, group: TaskGroup) -> bool:
    """Whether the rows carry a description, all of them the same one."""
    texts = [base.tokenizer.decode(row.prompt) for row in group.rows]
    found = {wording for t in TASKS for wording in t.descriptions for text in texts if f"{wording}\n\n" in text}
    assert len(found) <= 1
    assert all((not found) or f"{next(iter(found))}\n\n" in text for text in texts)
    return bool(found)


def initials(base: Base, group: TaskGroup) -> str:
    """First letters of the inputs of a group, in order."""
    texts = [base.tokenizer.decode(row.prompt) for row in group.rows]
    return "".join(text.split("<|im_end|>")[1].splitlines()[-1][0] for text in texts)


# what is drawn


def test_a_batch_depends_on_seed_and_step_alone(tiny_base: Base, encoder: PretrainedTextEncoder) -> None:
    one, other = sampler_of(tiny_base, encoder), sampler_of(tiny_base, encoder)
    forwards = [content(one(step)) for step in range(6)]
    backwards = [content(other(step)) for step in reversed(range(6))][::-1]
    assert forwards == backwards
    assert all(left != right for left, right in pairwise(forwards))
    assert content(sampler_of(tiny_base, encoder, seed=1)(0)) != forwards[0]


def test_draws_stay_the_same_from_version_to_version(tiny_base: Base, encoder: PretrainedTextEncoder) -> None:
    """A stopped run that is continued by a later version must go on with the same batches."""
    drawn = groups_of(sampler_of(tiny_base, encoder), 3)
    assert [(g.task_id, g.condition is None, in_context(tiny_base, g), initials(tiny_base, g)) for g in drawn] == [
        ("first", False, False, "bpfeaoc"),
        ("reverse", False, False, "ecpdhc"),
        ("upper", False, False, "dpbera"),
        ("upper", False, False, "coderf"),
        ("first", False, True, "dpehof"),
        ("reverse", False, False, "bhrbef"),
        ("upper", False, False, "robeap"),
        ("first", False, False, "erhobcf"),
        ("reverse", False, True, "fpabo"),
        ("upper", False, False, "rhcbba"),
        ("reverse", True, True, "pfrdh"),
        ("first", False, True, "bpdcc"),
    ]


def test_every_task_is_drawn_once_in_an_epoch(tiny_base: Base, encoder: PretrainedTextEncoder) -> None:
    drawn = [group.task_id for group in groups_of(sampler_of(tiny_base, encoder), 9)]
    epochs = [tuple(drawn[i : i + 3]) for i in range(0, len(drawn), 3)]
    assert all(sorted(epoch) == ["first", "reverse", "upper"] for epoch in epochs)
    assert len(set(epochs)) > 2


def test_only_training_rows_and_seen_descriptions_are_ever_used(
    tiny_base: Base, encoder: PretrainedTextEncoder
) -> None:
    recorder = Recorder(encoder)
    sampler = sampler_of(tiny_base, recorder, context_fraction=0.7)
    tokenizer = tiny_base.tokenizer
    allowed = {
        (t.task_id, prompt_ids(tokenizer, task_messages(e.input, description=d)), answer_ids(tokenizer, e.output))
        for t in TASKS
        for e in t.train
        for d in (None, *t.seen_descriptions)
    }
    drawn = {
        (group.task_id, tuple(row.prompt), tuple(row.answer)) for group in groups_of(sampler, 150) for row in group.rows
    }
    assert drawn <= allowed
    assert len(drawn) > 0.9 * len(allowed)
    lines = {f"{e.input} -> {e.output}" for t in TASKS for e in t.train}
    assert recorder.seen <= lines | {d for t in TASKS for d in t.seen_descriptions}
    held_back = {text for t in TASKS for text in (*t.unseen_descriptions, *(e.input for e in t.test))}
    assert not any(text in seen for seen in recorder.seen for text in held_back)


@pytest.mark.parametrize("budget", [60, 220, 400])
def test_groups_keep_to_their_budget(tiny_base: Base, encoder: PretrainedTextEncoder, budget: int) -> None:
    sampler = sampler_of(tiny_base, encoder, tokens_per_group=budget)
    counts = Counter[int]()
    for group in groups_of(sampler, 20):
        counts[len(group.rows)] += 1
        assert len(group.rows) == 1 or pack([group.rows]).num_tokens <= budget
        assert len(group.rows) == len({tuple(row.prompt) for row in group.rows})
    assert max(counts) == 1 if budget == 60 else max(counts) > 1


def test_rows_beyond_the_limit_are_never_drawn(tiny_base: Base, encoder: PretrainedTextEncoder) -> None:
    long = Example("a very long input " * 5, "never drawn")
    tasks = [replace(t, train=(long, *t.train, long)) for t in TASKS]
    sampler = sampler_of(tiny_base, encoder, tasks=tasks, max_row_tokens=60)
    never = answer_ids(tiny_base.tokenizer, long.output)
    assert all(tuple(row.answer) != never for group in groups_of(sampler, 40) for row in group.rows)


# conditions and contexts


def test_a_warm_start_trains_the_shared_part_with_the_description_in_the_context(
    tiny_base: Base, encoder: PretrainedTextEncoder
) -> None:
    sampler = sampler_of(tiny_base, encoder, warm_start_steps=5)
    for group in groups_of(sampler, 5):
        assert group.condition is None
        assert in_context(tiny_base, group)
    assert any(group.condition is not None for group in sampler(5))


def test_shared_groups_always_have_the_description_in_the_context(
    tiny_base: Base, encoder: PretrainedTextEncoder
) -> None:
    for group in groups_of(sampler_of(tiny_base, encoder, shared_fraction=0.5), 20):
        assert group.condition is not None or in_context(tiny_base, group)


def nearest(condition: Tensor, sampler: TaskSampler) -> tuple[str, float]:
    """The training description nearest to a condition: its task and the cosine."""
    cosines = {
        t.task_id: float((block @ condition).max())
        for t, block in zip(TASKS, sampler.description_embeddings, strict=True)
    }
    best = max(cosines, key=cosines.__getitem__)
    return best, cosines[best]


def test_fractions_are_about_those_asked_for(tiny_base: Base, encoder: PretrainedTextEncoder) -> None:
    sampler = sampler_of(
        tiny_base, encoder, tokens_per_group=1, noise=0.0,
        shared_fraction=0.25, context_fraction=0.4, example_fraction=0.3, mixed_fraction=0.2,
    )  # fmt: skip
    groups = groups_of(sampler, 250)
    conditioned = [group for group in groups if group.condition is not None]
    assert 1 - len(conditioned) / len(groups) == pytest.approx(0.25, abs=0.05)
    assert sum(in_context(tiny_base, g) for g in conditioned) / len(conditioned) == pytest.approx(0.4, abs=0.06)
    plain = sum(nearest(g.condition, sampler)[1] > 1 - 1e-5 for g in conditioned if g.condition is not None)
    assert plain / len(conditioned) == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize(
    "change", [{"example_fraction": 0.0, "mixed_fraction": 0.0}, {"example_fraction": 1.0, "mixed_fraction": 0.0}]
)
def test_conditions_are_those_of_the_groups_own_task(
    tiny_base: Base, encoder: PretrainedTextEncoder, change: dict[str, Any]
) -> None:
    sampler = sampler_of(tiny_base, encoder, tokens_per_group=1, noise=0.0, num_examples=12, **change)
    by_examples = {
        t.task_id: torch.nn.functional.normalize(
            encoder.encode([f"{e.input} -> {e.output}" for e in t.train]).mean(0), dim=0
        )
        for t in TASKS
    }
    for group in groups_of(sampler, 20):
        if group.condition is None:
            continue
        if change["example_fraction"]:
            torch.testing.assert_close(group.condition, by_examples[group.task_id], atol=1e-5, rtol=0)
        else:
            found, cosine = nearest(group.condition, sampler)
            assert found == group.task_id
            assert cosine == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("noise", [0.1, 1.0])
def test_noise_has_the_length_asked_for_and_conditions_stay_normalised(
    tiny_base: Base, encoder: PretrainedTextEncoder, noise: float
) -> None:
    sampler = sampler_of(tiny_base, encoder, tokens_per_group=1, noise=noise, example_fraction=0.0, mixed_fraction=0.0)
    given = [g.condition for g in groups_of(sampler, 40) if g.condition is not None]
    assert all(float(c.norm()) == pytest.approx(1, abs=1e-5) for c in given)
    mean = sum(nearest(c, sampler)[1] for c in given) / len(given)
    assert mean == pytest.approx((1 + noise**2) ** -0.5, abs=0.05)


def test_the_control_mixes_conditions_and_tasks_up(tiny_base: Base, encoder: PretrainedTextEncoder) -> None:
    sampler = sampler_of(
        tiny_base, encoder, tokens_per_group=1, noise=0.0, example_fraction=0.0, mixed_fraction=0.0,
        shuffled_conditions=True,
    )  # fmt: skip
    pairs = Counter(
        (g.task_id, nearest(g.condition, sampler)[0]) for g in groups_of(sampler, 60) if g.condition is not None
    )
    assert len(pairs) == 9
    assert max(pairs.values()) < 0.25 * pairs.total()


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


# procedural tasks


def test_procedural_tasks_have_their_groups_and_their_epochs(tiny_base: Base, encoder: PretrainedTextEncoder) -> None:
    own, made_up = TASKS[:1], TASKS[1:]
    config = replace(CONFIG, groups=3, synthetic_groups=2, tokens_per_group=60)
    sampler = TaskSampler(own, tiny_base, encoder, config, 0, made_up)
    assert len(sampler.description_embeddings) == 3
    for step in range(5):
        drawn = [group.task_id for group in sampler(step)]
        assert drawn[0] == "upper"
        assert sorted(drawn[1:]) == ["first", "reverse"]


# what is refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": 0}, "at least 1"),
        ({"tokens_per_group": 0}, "at least 1"),
        ({"max_row_tokens": 0}, "at least 1"),
        ({"num_examples": 0}, "at least 1"),
        ({"warm_start_steps": -1}, "must not be negative"),
        ({"noise": -0.1}, "must not be negative"),
        ({"borrowed_groups": -1}, "must not be negative"),
        ({"synthetic_groups": 5}, "between 0 and groups"),
        ({"shared_fraction": 1.1}, "between 0 and 1"),
        ({"context_fraction": float("nan")}, "between 0 and 1"),
        ({"example_fraction": 0.6, "mixed_fraction": 0.5}, "between 0 and 1"),
    ],
)
def test_settings_out_of_range_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(CONFIG, **change)


def test_tasks_that_cannot_be_trained_on_are_refused_before_the_first_step(
    tiny_base: Base, encoder: PretrainedTextEncoder
) -> None:
    single = replace(TASKS[0], descriptions=TASKS[0].descriptions[:1])
    with pytest.raises(ConfigError, match="upper has no description to train on"):
        sampler_of(tiny_base, encoder, tasks=[TASKS[1], single])
    with pytest.raises(ConfigError, match="upper has no row of at most 12 tokens of input and answer; raise"):
        sampler_of(tiny_base, encoder, max_row_tokens=12)
    with pytest.raises(ConfigError, match="first has no row of at most 100 tokens"):
        sampler_of(tiny_base, encoder, tasks=[replace(TASKS[1], train=())])
    with pytest.raises(ConfigError, match="no task to train on"):
        sampler_of(tiny_base, encoder, tasks=[])
    with pytest.raises(ConfigError, match="0 procedural tasks and 2 groups"):
        sampler_of(tiny_base, encoder, synthetic_groups=2)
    with pytest.raises(ConfigError, match="3 procedural tasks and 0 groups"):
        TaskSampler(TASKS, tiny_base, encoder, CONFIG, 0, TASKS)


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
