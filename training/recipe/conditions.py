"""Conditions of tasks as a fit draws them: of a seen description, of examples or of both, with noise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from llgbm.errors import ConfigError
from llgbm.prompting import TextEncoder, condition_of, example_lines, noisy
from llgbm.text_encoder import PretrainedTextEncoder, SqliteEmbeddingCache
from training.tasks.format import Task

TEXTS_FILE = "embeddings.sqlite"
"""In the working directory of a command that trains: what the encoder has made of tens of thousands of texts."""


@dataclass(frozen=True)
class ConditionConfig:
    """What a condition is made of."""

    example_fraction: float = 0.2
    """Share of conditions that come from examples instead of a description."""
    mixed_fraction: float = 0.1
    """Share of conditions that come from a description and examples together."""
    num_examples: int = 3
    """Examples in such a condition."""
    example_pool: int = 16
    """Training rows of a task that examples are drawn from."""
    noise: float = 0.1
    """Length of the random vector that is added to a condition, whose own length is 1."""

    def __post_init__(self) -> None:
        if self.num_examples < 1 or self.noise < 0:
            raise ConfigError("num_examples must be at least 1, and noise must not be negative")
        if self.example_pool < self.num_examples:
            raise ConfigError("example_pool must not be smaller than num_examples")
        if min(self.example_fraction, self.mixed_fraction) < 0 or self.example_fraction + self.mixed_fraction > 1:
            raise ConfigError("fractions lie between 0 and 1, and so does example_fraction + mixed_fraction")


@contextmanager
def lasting_encoder(name_or_path: str, file: Path) -> Iterator[PretrainedTextEncoder]:
    """A text encoder that keeps what it makes of texts in `file`, so that no run encodes them again."""
    with closing(SqliteEmbeddingCache(file)) as cache:
        yield PretrainedTextEncoder(name_or_path, cache=cache)


class ConditionSampler:
    """Draws conditions of tasks; all their texts are encoded now.

    Args:
        seed: picks the training rows of which the examples are drawn.

    Attributes:
        descriptions: for each task, embeddings (seen descriptions, condition_size).

    Raises:
        ConfigError: a task has no description to train on.
    """

    def __init__(self, tasks: Sequence[Task], encoder: TextEncoder, config: ConditionConfig, seed: int) -> None:
        self._config = config
        self.descriptions: list[Tensor] = []
        self._examples: list[Tensor] = []
        rng = np.random.default_rng(seed)
        for task in tasks:
            if not task.seen_descriptions:
                raise ConfigError(f"{task.task_id} has no description to train on; leave it out or write more wordings")
            chosen = rng.permutation(len(task.train))[: config.example_pool]
            lines = example_lines([(task.train[i].input, task.train[i].output) for i in chosen])
            embeddings = encoder.encode([*task.seen_descriptions, *lines])
            self.descriptions.append(embeddings[: len(task.seen_descriptions)])
            self._examples.append(embeddings[len(task.seen_descriptions) :])

    def draw(self, index: int, wording: int, rng: np.random.Generator) -> Tensor:
        """A condition (condition_size,) of the task `index`; its description, if it reads one, is number `wording`."""
        config, none = self._config, self.descriptions[index][:0]
        description = self.descriptions[index][wording : wording + 1]
        lines = self._examples[index]
        examples = lines[rng.permutation(len(lines))[: config.num_examples]]
        kind = rng.random()
        if kind < config.example_fraction:
            condition = condition_of(none, examples)
        elif kind < config.example_fraction + config.mixed_fraction:
            condition = condition_of(description, examples)
        else:
            condition = condition_of(description, none)
        normal = torch.from_numpy(rng.standard_normal(len(condition)).astype(np.float32))
        return noisy(condition, normal, self._config.noise)
