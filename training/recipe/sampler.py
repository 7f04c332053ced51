"""Draws the training batches of `fit`: the tasks, their rows and wordings, and the context of each row.

The batch of a step depends only on the seed and the step. Only `train` rows and seen descriptions are used. Groups are
filled up to a token budget, so that every step costs about the same, whatever the length of its inputs.
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
from llgbm.packed.batch import Row, TaskGroup, TrainingBatch
from llgbm.prompting import TextEncoder
from training.recipe.conditions import ConditionConfig, ConditionSampler
from training.tasks.format import Example, Task

MAX_SHOTS = 5
"""Maximum number of examples in the context of a group."""


@dataclass(frozen=True)
class SamplerConfig(ConditionConfig):
    """Composition of a batch, including the conditions of its groups."""

    groups: int = 8
    """Tasks per step; each has one adapter."""
    synthetic_groups: int = 0
    """Number of these groups with procedural tasks."""
    family_groups: int = 0
    """Number of these groups with tasks of families. The remaining groups are tasks of the folder of task files."""
    sisters: int = 2
    """Number of tasks of one family that are drawn together, on the same inputs, so that only the prompt determines
    their answers; 1 draws every task separately."""
    tokens_per_group: int = 110
    """Token budget of a group. The common prefix of its rows (start of the chat template, description) counts once;
    examples in the context do not count."""
    max_row_tokens: int = 130
    """Maximum length of a row's input and answer in tokens, including template tokens; longer rows are never drawn."""
    warm_start_steps: int = 0
    """Number of first steps that train only the shared part: no condition, description in the context of every row."""
    shared_fraction: float = 0.1
    """Fraction of groups that train the shared part in the same way in later steps."""
    context_fraction: float = 0.2
    """Fraction of conditioned groups whose rows also have the description in the context."""
    shots_fraction: float = 0.0
    """Fraction of the groups with a description in the context that also have 1 to 5 examples there, as earlier turns.
    This trains in-context learning, as in MetaICL (arXiv 2110.15943)."""
    shots_tokens: int = 160
    """Token budget of these examples."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.groups, self.tokens_per_group, self.max_row_tokens, self.sisters, self.shots_tokens) < 1:
            raise ConfigError("groups, sisters, tokens_per_group, shots_tokens and max_row_tokens must be at least 1")
        if min(self.warm_start_steps, self.synthetic_groups, self.family_groups) < 0:
            raise ConfigError("warm_start_steps, synthetic_groups and family_groups must not be negative")
        if self.synthetic_groups + self.family_groups > self.groups:
            raise ConfigError("synthetic_groups + family_groups must not be more than groups")
        fractions = (self.shared_fraction, self.context_fraction, self.shots_fraction)
        if not all(0 <= fraction <= 1 for fraction in fractions):
            raise ConfigError("fractions lie between 0 and 1")

    @property
    def own_groups(self) -> int:
        """Groups whose tasks come from the folder of task files."""
        return self.groups - self.synthetic_groups - self.family_groups


def _drawn_in_epochs(count: int, step: int, groups: int, seed: int, *, stream: int) -> list[int]:
    """The `groups` tasks of a step out of `count`, each once per epoch; `stream` separates pools with the same seed."""
    places = [divmod(step * groups + slot, count) for slot in range(groups)]
    return [int(np.random.default_rng([seed, epoch, stream]).permutation(count)[i]) for epoch, i in places]


class TaskSampler:
    """Draws batches for `llgbm.training.train`. In an epoch, every task (for families: every family) is drawn once.

    Args:
        tasks: tasks of the folder.
        synthetic: procedural tasks, with separate epochs.
        relatives: tasks of families, ordered by family.
        with_context_rows: also give the rows of conditioned groups with the description in the context, for a teacher
            that reads it.
        teachers: adapters by task id that teach instead; they read the rows without a description.
        deltas: deltas of teachers by task id, each (probes, layers, hidden), for conditioned groups of these tasks.
        words: gives the answer words of a text; None for a generator that does not read them.

    Raises:
        ConfigError: a task has no description to train on or no short enough row, or a kind of task has groups but no
            tasks, or tasks but no groups.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        base: Base,
        encoder: TextEncoder,
        config: SamplerConfig,
        seed: int,
        synthetic: Sequence[Task] = (),
        relatives: Sequence[Task] = (),
        *,
        with_context_rows: bool = True,
        teachers: Mapping[str, LoRAWeights] | None = None,
        deltas: Mapping[str, Tensor] | None = None,
        words: TextEncoder | None = None,
    ) -> None:
        self._base, self._config, self._seed = base, config, seed
        self._tasks = [*tasks, *synthetic, *relatives]
        self._num_own, self._num_synthetic = len(tasks), len(synthetic)
        self._with_context_rows, self._teachers = with_context_rows, teachers
        self._deltas = deltas or {}
        for name, found, groups in (
            ("tasks of the folder", tasks, config.own_groups),
            ("procedural tasks", synthetic, config.synthetic_groups),
            ("tasks of families", relatives, config.family_groups),
        ):
            if bool(found) != bool(groups):
                raise ConfigError(
                    f"there are {len(found)} {name} and {groups} groups of a step for them; give both or neither"
                )
        self._families = _by_family(relatives, first=len(tasks) + len(synthetic))
        self._conditions = ConditionSampler(self._tasks, encoder, config, seed, words)
        self._bare_head_length = len(self._head())
        self._tail = len(self._prompt("", None)) - self._bare_head_length
        for task in self._tasks:
            self._require_short_row(task)

    def __call__(self, step: int) -> TrainingBatch:
        """The groups of `step`, counted from 0."""
        config = self._config
        rng = np.random.default_rng([self._seed, step])
        own = _drawn_in_epochs(self._num_own, step, config.own_groups, self._seed, stream=1)
        synthetic = _drawn_in_epochs(self._num_synthetic, step, config.synthetic_groups, self._seed, stream=2)
        shared_only = step < config.warm_start_steps
        drawn = [*own, *(self._num_own + task for task in synthetic)]
        groups = [self._group(task, rng, shared_only=shared_only) for task in drawn]
        for sisters in self._drawn_sisters(step, rng):
            inputs = _shuffled_inputs([self._tasks[i] for i in sisters], rng)
            groups += [self._group(task, rng, shared_only=shared_only, inputs=inputs) for task in sisters]
        return groups

    def _drawn_sisters(self, step: int, rng: np.random.Generator) -> list[list[int]]:
        """Indices of a step's tasks of families, grouped by family."""
        groups, sisters = self._config.family_groups, self._config.sisters
        per_step = -(-groups // sisters)
        families = _drawn_in_epochs(len(self._families), step, per_step, self._seed, stream=3) if groups else []
        drawn: list[list[int]] = []
        for family in families:
            members, left = self._families[family], groups - sum(len(found) for found in drawn)
            chosen = rng.permutation(len(members))[: min(sisters, left)]
            drawn.append([members[i] for i in chosen])
        return drawn

    def _group(
        self, index: int, rng: np.random.Generator, *, shared_only: bool, inputs: Mapping[str, int] | None = None
    ) -> TaskGroup:
        """A group of the task at `index`; `inputs` gives the order in which its rows are taken."""
        task, config = self._tasks[index], self._config
        wording = int(rng.integers(len(task.seen_descriptions)))
        description = task.seen_descriptions[wording]
        if shared_only or rng.random() < config.shared_fraction:
            return TaskGroup(task.task_id, None, self._in_context(task, description, rng, inputs))
        condition = self._conditions.draw(index, wording, rng)
        delta = self._deltas.get(task.task_id)
        if rng.random() < config.context_fraction:
            return TaskGroup(task.task_id, condition, self._in_context(task, description, rng, inputs), delta=delta)
        examples, rows = self._fitting(task, _order(task, rng, inputs), None, ())
        group = TaskGroup(task.task_id, condition, rows, delta=delta)
        if not self._with_context_rows:
            return group
        if self._teachers is not None:
            teacher = self._teachers.get(task.task_id)
            return replace(group, context_rows=rows if teacher else (), teacher=teacher)
        return replace(group, context_rows=[self._row(example, description, ()) for example in examples])

    def _in_context(
        self, task: Task, description: str, rng: np.random.Generator, inputs: Mapping[str, int] | None
    ) -> list[Row]:
        """Rows with the description in the context; some groups also have examples there."""
        order = _order(task, rng, inputs)
        with_shots = self._config.shots_fraction > 0 and rng.random() < self._config.shots_fraction
        return self._fitting(task, order, description, self._shots(task, order, rng) if with_shots else ())[1]

    def _shots(self, task: Task, order: Sequence[int], rng: np.random.Generator) -> tuple[Example, ...]:
        """1 to 5 examples for the context, from the end of `order`, within their token budget."""
        wanted, spent = int(rng.integers(1, MAX_SHOTS + 1)), 0
        chosen: list[Example] = []
        for i in order[:0:-1]:  # never the first, which is reserved for a row
            row = self._row(task.train[i], None, ())
            spent += len(row.prompt) + len(row.answer) - self._bare_head_length
            if len(chosen) == wanted or spent > self._config.shots_tokens:
                break
            chosen.append(task.train[i])
        return tuple(chosen)

    def _fitting(
        self, task: Task, order: Sequence[int], description: str | None, shots: Sequence[Example]
    ) -> tuple[list[Example], list[Row]]:
        """The first training examples in `order` that fit the token budget, and their rows."""
        examples: list[Example] = []
        rows: list[Row] = []
        spent = head = self._head_length(description, shots)
        budget = self._config.tokens_per_group + head - self._head_length(description, ())
        for i in order:
            if task.train[i] in shots:
                continue
            row = self._row(task.train[i], description, shots)
            cost = len(row.prompt) + len(row.answer) - head
            if cost > self._config.max_row_tokens:
                continue
            if rows and spent + cost > budget:
                break
            examples.append(task.train[i])
            rows.append(row)
            spent += cost
        if not rows:
            raise self._no_short_row(task)
        return examples, rows

    def _require_short_row(self, task: Task) -> None:
        """Raise before the first step instead of at the step that draws this task."""
        head = self._head_length(None, ())
        rows = (self._row(example, None, ()) for example in task.train)
        if not any(len(row.prompt) + len(row.answer) - head <= self._config.max_row_tokens for row in rows):
            raise self._no_short_row(task)

    def _no_short_row(self, task: Task) -> ConfigError:
        return ConfigError(
            f"{task.task_id} has no row of at most {self._config.max_row_tokens} tokens of input and answer; "
            "raise max_row_tokens"
        )

    def _row(self, example: Example, description: str | None, shots: Sequence[Example]) -> Row:
        answer = answer_ids(self._base.tokenizer, example.output)
        return Row(self._prompt(example.input, description, shots), answer)

    def _prompt(self, given: str, description: str | None, shots: Sequence[Example] = ()) -> tuple[int, ...]:
        pairs = [(shot.input, shot.output) for shot in shots]
        return prompt_ids(self._base.tokenizer, task_messages(given, description=description, examples=pairs))

    def _head_length(self, description: str | None, shots: Sequence[Example]) -> int:
        """Number of tokens before the input, which the rows of a group share and `pack` stores once."""
        return len(self._prompt("", description, shots)) - self._tail

    def _head(self) -> tuple[int, ...]:
        """The tokens before the input that are the same for all inputs, without a description in the context."""
        one, other = self._prompt("a", None), self._prompt("b", None)
        return one[: next(i for i, (x, y) in enumerate(zip(one, other, strict=False)) if x != y)]


def _order(task: Task, rng: np.random.Generator, inputs: Mapping[str, int] | None) -> list[int]:
    """Indices of the task's training rows in random order, or in the order of `inputs`."""
    if inputs is not None:
        return sorted(range(len(task.train)), key=lambda i: inputs[task.train[i].input])
    return [int(i) for i in rng.permutation(len(task.train))]


def _by_family(tasks: Sequence[Task], *, first: int) -> list[list[int]]:
    """Indices of the tasks of each family; the first task has index `first`."""
    families: dict[str, list[int]] = {}
    for place, task in enumerate(tasks, start=first):
        families.setdefault(task.family or task.task_id, []).append(place)
    return list(families.values())


def _shuffled_inputs(tasks: Sequence[Task], rng: np.random.Generator) -> dict[str, int]:
    """A random rank for each input, common to all tasks with this input."""
    inputs = list(dict.fromkeys(row.input for task in tasks for row in task.train))
    return {inputs[i]: place for place, i in enumerate(rng.permutation(len(inputs)))}
