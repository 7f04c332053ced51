"""Draws the conditions of tasks for training: from a seen description, from examples, or from both, with noise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from llgbm.conditioning.encoder_lora import EncoderLoRA
from llgbm.errors import ConfigError
from llgbm.prompting import TextEncoder, example_lines, joined_condition, noisy
from llgbm.text_encoder import PretrainedTextEncoder, SqliteEmbeddingCache
from training.tasks.format import Task

_STRONG_NOISE = 1.0
"""Length of the noise of `strong_noise_fraction`: as long as the condition itself."""
TEXTS_FILE = "embeddings.sqlite"
"""File in a training command's working directory that caches the encoder's embeddings of tens of thousands of texts."""


@dataclass(frozen=True)
class ConditionConfig:
    """Sources and noise of conditions."""

    example_fraction: float = 0.2
    """Fraction of conditions made from examples instead of a description."""
    mixed_fraction: float = 0.1
    """Fraction of conditions made from a description and examples."""
    num_examples: int = 3
    """Number of examples in a condition."""
    example_pool: int = 16
    """Number of training rows per task that examples are drawn from."""
    noise: float = 0.1
    """Length of the random vector added to a condition; conditions have length 1."""
    strong_noise_fraction: float = 0.0
    """Fraction of the conditions that get noise of length 1 instead, for generators that read answer words: of such a
    task they are all that is left, as they are of a task that is new."""

    def __post_init__(self) -> None:
        if self.num_examples < 1 or self.noise < 0:
            raise ConfigError("num_examples must be at least 1, and noise must not be negative")
        if not 0 <= self.strong_noise_fraction <= 1:
            raise ConfigError("strong_noise_fraction lies between 0 and 1")
        if self.example_pool < self.num_examples:
            raise ConfigError("example_pool must not be smaller than num_examples")
        if min(self.example_fraction, self.mixed_fraction) < 0 or self.example_fraction + self.mixed_fraction > 1:
            raise ConfigError("fractions lie between 0 and 1, and so does example_fraction + mixed_fraction")


@contextmanager
def lasting_encoder(name_or_path: str, file: Path, lora: EncoderLoRA | None = None) -> Iterator[PretrainedTextEncoder]:
    """A text encoder, with a LoRA or without, that caches its embeddings in `file`, so that none is computed twice.

    Encoders with different LoRAs may share the file.
    """
    with closing(SqliteEmbeddingCache(file)) as cache:
        yield PretrainedTextEncoder(name_or_path, cache=cache, lora=lora)


class ConditionSampler:
    """Draws conditions of tasks. Texts are encoded when they are drawn, so that a short run encodes few.

    Args:
        encoder: should have a cache, since the same texts are drawn repeatedly.
        words: gives the answer words of a text; None for a generator that does not read them.
        seed: random seed that selects the training rows for examples.

    Raises:
        ConfigError: a task has no description to train on.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        encoder: TextEncoder,
        config: ConditionConfig,
        seed: int,
        words: TextEncoder | None = None,
    ) -> None:
        self._tasks, self._encoder, self._config, self._words = tasks, encoder, config, words
        self._lines: list[Sequence[str]] = []
        rng = np.random.default_rng(seed)
        for task in tasks:
            if not task.seen_descriptions:
                raise ConfigError(f"{task.task_id} has no description to train on; leave it out or write more wordings")
            chosen = rng.permutation(len(task.train))[: config.example_pool]
            self._lines.append(example_lines([(task.train[i].input, task.train[i].output) for i in chosen]))

    def draw(self, index: int, wording: int, rng: np.random.Generator) -> Tensor:
        """A generator's input (input_size,) of the task at `index`.

        Args:
            index: index of the task.
            wording: index of the seen description to use, if the condition uses one.
            rng: draws the sources, the examples and the noise.
        """
        config, lines = self._config, self._lines[index]
        examples = [lines[i] for i in rng.permutation(len(lines))[: config.num_examples]]
        kind = rng.random()
        with_examples = kind < config.example_fraction + config.mixed_fraction
        with_description = kind >= config.example_fraction
        descriptions = [self._tasks[index].seen_descriptions[wording]] if with_description else []
        texts = [*descriptions, *(examples if with_examples else [])]
        vectors = self._encoder.encode(texts)
        words = self._words.encode(texts) if self._words is not None else None
        condition = joined_condition(vectors, words, len(descriptions))
        size = vectors.shape[1]
        normal = torch.from_numpy(rng.standard_normal(size).astype(np.float32))
        strong = config.strong_noise_fraction > 0 and rng.random() < config.strong_noise_fraction
        length = _STRONG_NOISE if strong else config.noise
        return torch.cat([noisy(condition[:size], normal, length), condition[size:]])
