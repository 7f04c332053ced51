from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from llgbm.errors import ConfigError
from llgbm.prompting import condition_of, example_lines, noisy
from tests.training.conftest import small_tasks
from training.recipe.conditions import ConditionConfig, ConditionSampler

TASK = small_tasks()[0]


class OneHot:
    """A text encoder in whose embeddings every text has a direction of its own, in order of first appearance."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def encode(self, texts: Sequence[str]) -> Tensor:
        self.texts += [text for text in texts if text not in self.texts]
        return torch.nn.functional.one_hot(torch.tensor([self.texts.index(t) for t in texts]), 64).float()


def drawn(count: int, **settings: float) -> set[str]:
    """The texts that so many conditions were made of."""
    encoder = OneHot()
    sampler = ConditionSampler([TASK], encoder, ConditionConfig(noise=0, **settings), seed=0)  # type: ignore[arg-type]
    rng = np.random.default_rng(0)
    used = torch.stack([sampler.draw(0, 0, rng) for _ in range(count)]).sum(0)
    return {encoder.texts[i] for i in used.nonzero()[:, 0].tolist()}


def test_examples_come_from_a_pool_of_training_rows() -> None:
    rows = set(example_lines([(row.input, row.output) for row in TASK.train]))
    found = [drawn(300, example_fraction=1, mixed_fraction=0, example_pool=pool) for pool in (3, 8, 99)]
    assert [len(one) for one in found] == [3, 8, len(TASK.train)]
    assert found[0] < found[1] < found[2] == rows


def test_a_condition_of_a_description_has_no_example_in_it() -> None:
    assert drawn(50, example_fraction=0, mixed_fraction=0) == {TASK.seen_descriptions[0]}
    assert TASK.seen_descriptions[0] in drawn(50, example_fraction=0, mixed_fraction=1)


def test_a_pool_that_is_smaller_than_what_is_drawn_from_it_is_refused() -> None:
    with pytest.raises(ConfigError, match="example_pool must not be smaller than num_examples"):
        ConditionConfig(num_examples=3, example_pool=2)


class Words:
    """Gives every text two numbers of its own."""

    def encode(self, texts: Sequence[str]) -> Tensor:
        return torch.tensor([[float(len(text)), float(ord(text[0]))] for text in texts])


def drawn_rows(count: int, words: Words | None = None, **settings: float) -> Tensor:
    """So many conditions of the first wording."""
    config = ConditionConfig(example_fraction=0, mixed_fraction=0, **settings)  # type: ignore[arg-type]
    sampler, rng = ConditionSampler([TASK], OneHot(), config, 0, words), np.random.default_rng(0)
    return torch.stack([sampler.draw(0, 0, rng) for _ in range(count)])


def test_strong_noise_leaves_less_of_a_condition_than_the_usual() -> None:
    clean = drawn_rows(1, noise=0)[0]
    weak, strong, mixed = (
        drawn_rows(200, noise=0.3, strong_noise_fraction=fraction) @ clean for fraction in (0.0, 1.0, 0.5)
    )
    assert weak.min() > strong.mean() + 0.1
    assert strong.mean() == pytest.approx(0.5**0.5, abs=0.06)
    assert 60 < int((mixed < 0.86).sum()) < 140


def test_noise_does_not_change_answer_words() -> None:
    first = TASK.seen_descriptions[0]
    rows = drawn_rows(20, Words(), noise=0.3, strong_noise_fraction=0.5)
    assert rows.shape == (20, 64 + 2)
    assert torch.equal(rows[:, 64:], Words().encode([first]).expand(20, -1))
    torch.testing.assert_close(rows[:, :64].norm(dim=1), torch.ones(20))
    assert torch.equal(rows[:, :64], drawn_rows(20, noise=0.3, strong_noise_fraction=0.5))


def test_words_of_examples_and_descriptions_count_alike() -> None:
    config = ConditionConfig(example_fraction=0, mixed_fraction=1, num_examples=2, noise=0)
    sampler = ConditionSampler([TASK], OneHot(), config, 0, Words())
    row = sampler.draw(0, 0, np.random.default_rng(3))
    lines = set(example_lines([(r.input, r.output) for r in TASK.train]))
    description = Words().encode([TASK.seen_descriptions[0]])[0]
    pairs = {(a, b) for a in lines for b in lines if a < b}
    expected = [(description + Words().encode(pair).mean(0)) / 2 for pair in pairs]
    assert any(torch.allclose(row[64:], one) for one in expected)


def test_without_strong_noise_the_draws_are_those_of_earlier_fits() -> None:
    """A fit of earlier settings repeats: one permutation, one kind and one normal vector for each condition."""
    config, encoder = ConditionConfig(noise=0.2, example_fraction=0.3, mixed_fraction=0.3), OneHot()
    sampler, rng, same = (
        ConditionSampler([TASK], encoder, config, 0),
        np.random.default_rng(7),
        np.random.default_rng(7),
    )
    for _ in range(30):
        found = sampler.draw(0, 0, rng)
        order, kind = same.permutation(min(config.example_pool, len(TASK.train))), same.random()
        normal = torch.from_numpy(same.standard_normal(64).astype(np.float32))
        assert len(order) >= config.num_examples
        if kind >= 0.6:
            described = condition_of(encoder.encode([TASK.seen_descriptions[0]]), torch.zeros(0, 64))
            assert torch.equal(found, noisy(described, normal, 0.2))
    assert rng.random() == same.random()


@pytest.mark.parametrize("fraction", [-0.1, 1.1])
def test_a_fraction_of_strong_noise_lies_between_0_and_1(fraction: float) -> None:
    with pytest.raises(ConfigError, match="strong_noise_fraction lies between 0 and 1"):
        ConditionConfig(strong_noise_fraction=fraction)
