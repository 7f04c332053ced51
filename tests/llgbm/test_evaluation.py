import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llgbm.base import Base
from llgbm.errors import AdapterMismatchError, ConfigError
from llgbm.evaluation import EvalRow, RowScore, compute_accuracy_with_lora, paired_bootstrap, score_rows
from llgbm.functional import FunctionalLoRA
from llgbm.lora import LoRAWeights
from tests.fixtures import random_lora
from tests.small_generator import SPEC

ADAPTERS: list[LoRAWeights | None] = [None, random_lora(SPEC, 0, size=0.5), random_lora(SPEC, 1, size=0.5)]
Groups = list[tuple[LoRAWeights | None, list[EvalRow]]]


def greedy(base: Base, adapter: LoRAWeights | None, prompt: tuple[int, ...], length: int) -> tuple[int, ...]:
    """Greedy decoding by transformers, end token included, at most `length` tokens."""
    ids = torch.tensor([prompt])
    with torch.inference_mode(), FunctionalLoRA(base.model).applied([adapter]):
        out = base.model.generate(  # type: ignore[operator]
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=length, do_sample=False
        )
    return tuple(out[0, len(prompt) :].tolist())


@pytest.fixture(scope="module")
def groups(tiny_base: Base) -> Groups:
    """For each adapter, rows with the model's own answer, and rows with one token of it changed."""
    rng = np.random.default_rng(0)
    vocabulary = len(tiny_base.tokenizer)
    made: Groups = []
    for adapter in ADAPTERS:
        rows = []
        for _ in range(8):
            prompt = tuple(int(t) for t in rng.integers(vocabulary, size=int(rng.integers(1, 9))))
            own = greedy(tiny_base, adapter, prompt, int(rng.integers(1, 6)))
            place = int(rng.integers(len(own)))
            other = (*own[:place], (own[place] + 1) % vocabulary, *own[place + 1 :])
            rows += [EvalRow(prompt, (own,)), EvalRow(prompt, (other,)), EvalRow(prompt, (other, own))]
        made.append((adapter, rows))
    return made


def test_a_row_is_right_if_and_only_if_greedy_decoding_gives_an_accepted_answer(
    tiny_base: Base, groups: Groups
) -> None:
    scores = score_rows(tiny_base, groups)
    outcomes = []
    for (adapter, rows), row_scores in zip(groups, scores, strict=True):
        assert len(row_scores) == len(rows)
        for row, score in zip(rows, row_scores, strict=True):
            decoded = {answer: greedy(tiny_base, adapter, row.prompt, len(answer)) for answer in row.answers}
            assert score.correct is any(answer == out for answer, out in decoded.items())
            outcomes.append(score.correct)
    assert outcomes.count(True) == 2 * outcomes.count(False)


def test_an_answer_counts_with_its_end_token(tiny_base: Base) -> None:
    """A right answer that continues is wrong."""
    end = tiny_base.tokenizer.convert_tokens_to_ids("<|im_end|>")
    prompt = (1, 2, 3)
    answer = greedy(tiny_base, None, prompt, 3)
    assert end not in answer
    stops_early, goes_on = EvalRow(prompt, ((*answer[:2], end),)), EvalRow(prompt, (answer[:2],))
    assert [s.correct for s in score_rows(tiny_base, [(None, [stops_early, goes_on])])[0]] == [False, True]


def test_the_log_likelihood_is_that_of_the_reference_alone(tiny_base: Base, groups: Groups) -> None:
    scores = score_rows(tiny_base, groups)
    for (adapter, rows), row_scores in zip(groups, scores, strict=True):
        for row, score in zip(rows, row_scores, strict=True):
            reference = row.answers[0]
            ids = torch.tensor([[*row.prompt, *reference]])
            with torch.inference_mode(), FunctionalLoRA(tiny_base.model).applied([adapter]):
                log = tiny_base.model(ids).logits[0, len(row.prompt) - 1 : -1].log_softmax(-1)
            expected = log.gather(1, torch.tensor(reference)[:, None]).mean()
            assert score.log_likelihood == pytest.approx(float(expected), abs=1e-4)


@settings(max_examples=10)
@given(max_tokens=st.integers(1, 600), order=st.permutations(range(3)))
def test_how_rows_are_put_together_does_not_change_a_score(
    tiny_base: Base, groups: Groups, max_tokens: int, order: list[int]
) -> None:
    expected = score_rows(tiny_base, groups, max_tokens=10**6)
    found = score_rows(tiny_base, [groups[i] for i in order], max_tokens=max_tokens)
    for scores, place in zip(found, order, strict=True):
        assert [s.correct for s in scores] == [s.correct for s in expected[place]]
        assert [s.log_likelihood for s in scores] == pytest.approx(
            [s.log_likelihood for s in expected[place]], abs=1e-4
        )


def test_a_group_without_rows_has_no_scores(tiny_base: Base, groups: Groups) -> None:
    assert score_rows(tiny_base, []) == []
    found = score_rows(tiny_base, [(None, []), (None, groups[0][1][:1]), (None, [])])
    assert [len(scores) for scores in found] == [0, 1, 0]


def test_an_answer_that_stands_twice_is_scored_once(tiny_base: Base, groups: Groups) -> None:
    row = groups[1][1][0]
    twice = replace(row, answers=row.answers * 2)
    one, two = (score_rows(tiny_base, [(groups[1][0], [r])])[0][0] for r in (row, twice))
    assert one == two == RowScore(True, one.log_likelihood)


def test_accuracy_is_the_share_of_right_rows(tiny_base: Base, groups: Groups) -> None:
    adapter, rows = groups[2]
    assert compute_accuracy_with_lora(tiny_base, adapter, rows) == pytest.approx(2 / 3)
    assert compute_accuracy_with_lora(tiny_base, adapter, rows[:1]) == 1
    assert compute_accuracy_with_lora(tiny_base, adapter, rows[1:2]) == 0
    assert math.isnan(compute_accuracy_with_lora(tiny_base, None, []))


@pytest.mark.parametrize("answers", [(), ((),), ((1, 2), ())])
def test_a_row_without_an_answer_or_with_an_empty_one_is_refused(answers: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(ConfigError, match="a row needs an answer"):
        EvalRow((1,), answers)


def test_an_empty_prompt_is_refused(tiny_base: Base) -> None:
    with pytest.raises(AdapterMismatchError, match="a prompt of at least one token"):
        score_rows(tiny_base, [(None, [EvalRow((), ((1,),))])])


# the bootstrap

numbers = st.floats(-10, 10)
tables = st.lists(st.lists(numbers, min_size=1, max_size=5), min_size=1, max_size=5)


@settings(max_examples=25)
@given(table=tables, seed=st.integers(0, 100))
def test_the_interval_is_seeded_and_holds_its_own_kind_of_mean(table: list[list[float]], seed: int) -> None:
    mean, low, high = paired_bootstrap(table, samples=50, seed=seed)
    assert mean == pytest.approx(np.mean([np.mean(task) for task in table]))
    everything = [x for task in table for x in task]
    assert min(everything) - 1e-9 <= low <= high <= max(everything) + 1e-9
    assert paired_bootstrap(table, samples=50, seed=seed) == (mean, low, high)
    assert paired_bootstrap([*table, []], samples=50, seed=seed) == (mean, low, high)


def test_rows_that_agree_leave_no_doubt() -> None:
    assert paired_bootstrap([[0.25] * 7, [0.25], [0.25, 0.25]], samples=20) == (0.25, 0.25, 0.25)


def test_another_seed_gives_another_interval() -> None:
    table = [[0.0, 1.0, 1.0], [0.0, 0.5]]
    assert len({paired_bootstrap(table, samples=30, seed=seed) for seed in range(5)}) > 1


@pytest.mark.parametrize("table", [[], [[]], [[], []]])
def test_no_rows_give_no_number(table: list[list[float]]) -> None:
    assert all(math.isnan(x) for x in paired_bootstrap(table))


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """Tasks differ, rows differ within tasks, and the true mean is known: 0.3."""
    covered, width = 0, []
    for trial in range(30):
        rng = np.random.default_rng(trial)
        table = [rng.normal(0.3 + rng.normal(0, 0.5), 1.0, size=8).tolist() for _ in range(20)]
        _, low, high = paired_bootstrap(table, samples=150, seed=trial)
        covered += low <= 0.3 <= high
        width.append(high - low)
    assert covered >= 26
    standard_error = (0.5**2 / 20 + 1 / 160) ** 0.5
    assert 3 * standard_error < np.mean(width) < 6 * standard_error
