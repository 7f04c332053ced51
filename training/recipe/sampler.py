"""Batches of tasks for `fit`: which tasks, which rows, which wording, whether the description stands in the context.

The batch of a step depends on the seed and the step alone. Only `train` rows and seen descriptions are ever read.
Groups are filled up to a token budget, so that every step costs about the same whatever the length of its inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from llgbm.base import Base
from llgbm.chat import answer_ids, prompt_ids, task_messages
from llgbm.errors import ConfigError
from llgbm.lora import LoRAWeights
from llgbm.packing import Row, TaskGroup, TrainingBatch
from llgbm.prompting import TextEncoder
from training.recipe.conditions import ConditionConfig, ConditionSampler
from training.tasks.format import Example, Task


@dataclass(frozen=True)
class SamplerConfig(ConditionConfig):
    """What a batch is made of, the conditions of its groups among that."""

    groups: int = 8
    """Tasks in a step; each has one adapter."""
    synthetic_groups: int = 0
    """How many of these are procedural tasks; the others come from the folder."""
    tokens_per_group: int = 110
    """Token budget of a group; its rows share the chat template's head, which is counted once."""
    max_row_tokens: int = 130
    """Rows whose input and answer are longer, the template's tokens around them included, are never drawn."""
    warm_start_steps: int = 0
    """First steps that train only the shared part: no condition, the description in the context of every row."""
    shared_fraction: float = 0.1
    """Share of groups that go on training the shared part so."""
    context_fraction: float = 0.2
    """Share of conditioned groups whose rows also carry the description in their context."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.groups, self.tokens_per_group, self.max_row_tokens) < 1:
            raise ConfigError("groups, tokens_per_group and max_row_tokens must be at least 1")
        if self.warm_start_steps < 0:
            raise ConfigError("warm_start_steps must not be negative")
        if not 0 <= self.synthetic_groups <= self.groups:
            raise ConfigError("synthetic_groups lies between 0 and groups")
        if not (0 <= self.shared_fraction <= 1 and 0 <= self.context_fraction <= 1):
            raise ConfigError("fractions lie between 0 and 1")


def drawn_in_epochs(count: int, step: int, groups: int, seed: int, *, stream: int) -> list[int]:
    """The `groups` tasks of a step out of `count`, each once in an epoch; `stream` tells pools of one seed apart."""
    places = [divmod(step * groups + slot, count) for slot in range(groups)]
    return [int(np.random.default_rng([seed, epoch, stream]).permutation(count)[i]) for epoch, i in places]


class TaskSampler:
    """Draws batches for `llgbm.training.train`. In an epoch, every task is drawn once.

    Args:
        tasks: those of the folder.
        synthetic: procedural tasks, which have epochs of their own.
        with_context_rows: also give rows of conditioned groups with the description in the context, for distillation.
        teachers: adapters by task id, to distil from in place of these; their rows are the bare ones.
        deltas: of teachers by task id, (probes, layers, hidden) each, for conditioned groups of these tasks.

    Raises:
        ConfigError: there is no task, or one has no description to train on, or no row short enough; or groups are
            wanted of tasks that there are none of.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        base: Base,
        encoder: TextEncoder,
        config: SamplerConfig,
        seed: int,
        synthetic: Sequence[Task] = (),
        *,
        with_context_rows: bool = True,
        teachers: Mapping[str, LoRAWeights] | None = None,
        deltas: Mapping[str, Tensor] | None = None,
    ) -> None:
        self._tasks, self._base, self._config, self._seed = [*tasks, *synthetic], base, config, seed
        self._num_own, self._with_context_rows, self._teachers = len(tasks), with_context_rows, teachers
        self._deltas = deltas or {}
        if not tasks and config.synthetic_groups < config.groups:
            raise ConfigError("there is no task to train on")
        if bool(synthetic) != bool(config.synthetic_groups):
            raise ConfigError(
                f"there are {len(synthetic)} procedural tasks and {config.synthetic_groups} groups of a step for them; "
                "set synthetic_tasks and synthetic_groups, or neither"
            )
        self._conditions = ConditionSampler(self._tasks, encoder, config, seed)
        self._tail = len(self._prompt("", None)) - len(self._head())
        for task in self._tasks:
            self._require_short_row(task)

    @property
    def description_embeddings(self) -> list[Tensor]:
        """For each task, those of the folder first, (seen descriptions, condition_size)."""
        return self._conditions.descriptions

    def __call__(self, step: int) -> TrainingBatch:
        """The groups of `step`, counted from 0."""
        config, num_own = self._config, self._num_own
        rng = np.random.default_rng([self._seed, step])
        own = drawn_in_epochs(num_own, step, config.groups - config.synthetic_groups, self._seed, stream=1)
        num_synthetic = len(self._tasks) - num_own
        synthetic = drawn_in_epochs(num_synthetic, step, config.synthetic_groups, self._seed, stream=2)
        shared_only = step < config.warm_start_steps
        drawn = [*own, *(num_own + task for task in synthetic)]
        return [self._group(task, rng, shared_only=shared_only) for task in drawn]

    def _group(self, index: int, rng: np.random.Generator, *, shared_only: bool) -> TaskGroup:
        task, config = self._tasks[index], self._config
        wording = int(rng.integers(len(task.seen_descriptions)))
        if shared_only or rng.random() < config.shared_fraction:
            _, rows = self._fitting(task, rng, task.seen_descriptions[wording])
            return TaskGroup(task.task_id, None, rows)
        condition = self._conditions.draw(index, wording, rng)
        in_context = task.seen_descriptions[wording] if rng.random() < config.context_fraction else None
        examples, rows = self._fitting(task, rng, in_context)
        group = TaskGroup(task.task_id, condition, rows, delta=self._deltas.get(task.task_id))
        if not self._with_context_rows or in_context is not None:
            return group
        if self._teachers is not None:
            teacher = self._teachers.get(task.task_id)
            return replace(group, context_rows=rows if teacher else (), teacher=teacher)
        context_rows = [self._row(example, task.seen_descriptions[wording]) for example in examples]
        return replace(group, context_rows=context_rows)

    def _fitting(
        self, task: Task, rng: np.random.Generator, description: str | None
    ) -> tuple[list[Example], list[Row]]:
        """Some of the task's training examples, as many as the token budget holds, and their rows."""
        examples: list[Example] = []
        rows: list[Row] = []
        spent = head = self._head_length(description)
        for i in rng.permutation(len(task.train)):
            row = self._row(task.train[i], description)
            cost = len(row.prompt) + len(row.answer) - head
            if cost > self._config.max_row_tokens:
                continue
            if rows and spent + cost > self._config.tokens_per_group:
                break
            examples.append(task.train[i])
            rows.append(row)
            spent += cost
        if not rows:
            raise self._no_short_row(task)
        return examples, rows

    def _require_short_row(self, task: Task) -> None:
        """Fail before the first step, and not at the one that happens to draw this task."""
        head = self._head_length(None)
        rows = (self._row(example, None) for example in task.train)
        if not any(len(row.prompt) + len(row.answer) - head <= self._config.max_row_tokens for row in rows):
            raise self._no_short_row(task)

    def _no_short_row(self, task: Task) -> ConfigError:
        return ConfigError(
            f"{task.task_id} has no row of at most {self._config.max_row_tokens} tokens of input and answer; "
            "raise max_row_tokens"
        )

    def _row(self, example: Example, description: str | None) -> Row:
        return Row(self._prompt(example.input, description), answer_ids(self._base.tokenizer, example.output))

    def _prompt(self, given: str, description: str | None) -> tuple[int, ...]:
        return prompt_ids(self._base.tokenizer, task_messages(given, description=description))

    def _head_length(self, description: str | None) -> int:
        """Tokens before the input, which the rows of a group share and `pack` stores once."""
        return len(self._prompt("", description)) - self._tail

    def _head(self) -> tuple[int, ...]:
        """The tokens before the input, whatever the input is, where no description stands in the context."""
        one, other = self._prompt("a", None), self._prompt("b", None)
        return one[: next(i for i, (x, y) in enumerate(zip(one, other, strict=False)) if x != y)]
