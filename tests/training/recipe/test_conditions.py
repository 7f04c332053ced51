from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from llgbm.errors import ConfigError
from llgbm.prompting import example_lines
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
