"""Checks during a fit: accuracy with the task's own prompt, with another task's prompt, and with the shared adapter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from llgbm.base import Base
from llgbm.errors import ConfigError
from llgbm.evaluation import score_rows
from llgbm.generator import LoRAGenerator
from llgbm.lora import LoRAWeights
from llgbm.prompting import TextEncoder
from training.tasks.format import Task, evenly
from training.tasks.rows import eval_row


@dataclass(frozen=True)
class CheckConfig:
    """Frequency and size of the checks."""

    every: int = 200
    """Steps between two checks; 0 disables them."""
    num_tasks: int = 20
    """Number of tasks in a check, evenly spaced over all."""
    num_rows: int = 10
    """Test rows per task."""
    skip_rows: int = 0
    """Number of first test rows to reserve for the evaluation, so that choices made by the checks do not bias it."""

    def __post_init__(self) -> None:
        if self.every < 0 or self.skip_rows < 0 or self.num_tasks < 1 or self.num_rows < 1:
            raise ConfigError("every and skip_rows must not be negative, num_tasks and num_rows must be at least 1")


class ProgressCheck:
    """Scores a generator on test rows with unseen descriptions.

    Tasks without enough test rows are left out. The names of the results begin with `name`.
    """

    def __init__(
        self,
        config: CheckConfig,
        tasks: Sequence[Task],
        base: Base,
        encoder: TextEncoder,
        words: TextEncoder | None = None,
        *,
        name: str = "check",
    ) -> None:
        self._config, self._base, self._name = config, base, name
        measurable = [t for t in tasks if len(t.test) > config.skip_rows] if config.every else []
        self._tasks = evenly(measurable, config.num_tasks)
        self._rows = [[eval_row(base, e) for e in t.test[config.skip_rows :][: config.num_rows]] for t in self._tasks]
        texts = [t.unseen_descriptions[0] for t in self._tasks]
        readers = [encoder] if words is None else [encoder, words]
        self._conditions = torch.cat([reader.encode(texts) for reader in readers], 1) if texts else None

    def due(self, done: int, total: int) -> bool:
        """Whether to check after `done` of `total` steps."""
        return bool(self._config.every) and (done % self._config.every == 0 or done == total)

    def run(self, generator: LoRAGenerator) -> dict[str, float]:
        """Macro accuracy and log-likelihood (nats per token): right prompt, another task's prompt, shared adapter.

        Empty without tasks to check. Another task's prompt needs at least two tasks.
        """
        if self._conditions is None:
            return {}
        with torch.inference_mode():
            shared = generator.shared_adapter()
        results = self._score(generator, self._conditions, "right")
        if len(self._tasks) > 1:
            results |= self._score(generator, self._conditions.roll(1, 0), "wrong")
        return results | self._scores([shared] * len(self._tasks), "shared")

    def _score(self, generator: LoRAGenerator, conditions: Tensor, name: str) -> dict[str, float]:
        with torch.inference_mode():
            return self._scores(generator(conditions), name)

    def _scores(self, adapters: Sequence[LoRAWeights], name: str) -> dict[str, float]:
        scores = score_rows(self._base, list(zip(adapters, self._rows, strict=True)))
        name = f"{self._name}_{name}"
        return {
            f"{name}_accuracy": float(np.mean([np.mean([s.correct for s in task]) for task in scores])),
            f"{name}_log_likelihood": float(np.mean([np.mean([s.log_likelihood for s in t]) for t in scores])),
        }
