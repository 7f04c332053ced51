"""Refining: an adapter learns from a few examples of its user, in seconds to minutes on a processor.

    base = load_base(BASE_0_5B, storage=fastest_training_storage())
    refined = refine(base, made.weights, [RefineRow.of("I want my money back", "billing")], RefineConfig())
    save_peft(refined.best, Path("tickets"), base_id=base.spec.base_id)

The start is a generated adapter, any other LoRA of the base, or none. With 8 examples or more, a quarter of them is
held out in turns. The held-out rows choose the number of steps and tell whether the result is better than the start;
then the adapter is trained on all examples. A part of the rows has the task's description in the context, so that the
adapter works bare and with it. The same arguments give the same result.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from llgbm.adapters.peft_io import content_digest
from llgbm.base import Base
from llgbm.chat import answer_ids, in_context, prompt_ids
from llgbm.config import default_lora
from llgbm.errors import CheckpointError, ConfigError, ContextLengthError
from llgbm.evaluation import EvalRow, score_rows
from llgbm.fitting.lora_steps import LoRASteps, StepSettings, initial_lora, weights_from
from llgbm.lora import LoRAWeights
from llgbm.packing import Row
from llgbm.refining.settings import (
    ENOUGH_TO_HOLD_OUT,
    HELD_OUT_SHARE,
    HeldOutScore,
    Phase,
    RefineConfig,
    Refined,
    RefineRow,
    RefineStep,
)


def refine(
    base: Base,
    start: LoRAWeights | None,
    rows: Sequence[RefineRow],
    config: RefineConfig,
    *,
    validation: Sequence[RefineRow] = (),
    on_step: Callable[[RefineStep], None] | None = None,
    resume: Mapping[str, Tensor] | None = None,
) -> Refined:
    """Train an adapter on a few examples.

    Args:
        base: loaded in a storage that passes gradients; `fastest_training_storage` names the fastest one.
        start: the adapter to start from; None uses PEFT's initialisation.
        rows: the examples.
        validation: examples that choose the number of steps in place of held-out ones; they are never trained on.
        on_step: called after every step. An exception that it raises ends `refine` and is passed on.
        resume: state of an earlier call with the same arguments; training continues after its step, with the same
            result as without the interruption.

    Raises:
        ConfigError: there is no example, the base passes no gradients, or the loss is not finite.
        ContextLengthError: an example is longer than `max_row_tokens` or the context; the message has its number.
        AdapterMismatchError: the start does not fit the base.
        CheckpointError: `resume` is damaged, or belongs to other arguments.
    """
    began = time.monotonic()
    run = _Refining(base, start, rows, config, validation, on_step)
    if resume is not None:
        run.resume(resume)
    run.run()
    return run.result(time.monotonic() - began)


def most_steps(rows: int, config: RefineConfig, *, validation: int = 0) -> int:
    """The number of steps that `refine` makes at most, in all phases.

    Args:
        rows: number of examples.
        validation: number of validation examples.
    """
    turns = _turns(rows, config) if not validation else 0
    return (1 + turns) * _steps_of_a_part(rows, config, chooses=bool(turns or validation))


@dataclass(frozen=True)
class _Forms:
    """An example as tokens: bare, and with the description if there is one."""

    bare: Row
    described: Row | None


@dataclass(frozen=True)
class _Part:
    """One run of steps: the rows to train on and the rows to measure."""

    phase: Phase
    train: list[_Forms]
    held_out: list[_Forms]


class _Refining:
    """The parts of a call one after the other, and the state between two steps."""

    def __init__(
        self,
        base: Base,
        start: LoRAWeights | None,
        rows: Sequence[RefineRow],
        config: RefineConfig,
        validation: Sequence[RefineRow],
        on_step: Callable[[RefineStep], None] | None,
    ) -> None:
        if not rows:
            raise ConfigError("there is no example to learn from; give at least one")
        self._base, self._start, self._config, self._on_step = base, start, config, on_step
        self._initial = initial_lora(default_lora(base.spec), config.seed) if start is None else start
        train = [_forms(base, row, number, config) for number, row in enumerate(rows, 1)]
        check = [_forms(base, row, number, config) for number, row in enumerate(validation, 1)]
        self._parts = _parts(train, check, config)
        self._most = _steps_of_a_part(len(rows), config, chooses=any(part.held_out for part in self._parts))
        every = self._most if config.steps is not None else config.check_every
        self._checks: list[int] = sorted({*range(every, self._most + 1, every), self._most})
        self._digest = _digest(base, self._initial, rows, validation, config)
        # sums over held-out rows: correct, log-likelihood, number; for the start and for every check
        self._sums = torch.zeros(1 + len(self._checks), 3, dtype=torch.float64)
        self._part = 0
        self._losses: list[float] = []
        self._best: Tensor | None = None
        self._steps = self._new_steps()

    def run(self) -> None:
        while self._part < len(self._parts):
            part = self._parts[self._part]
            if part.held_out and self._steps.done == 0:
                self._measure(part, 0, self._start)
            for groups in self._batches(part)[self._steps.done : self._target(part)]:
                self._losses.append(self._steps.step(groups))
                self._after_step(part)
            if self._part + 1 == len(self._parts):
                return
            self._part, self._losses, self._steps = self._part + 1, [], self._new_steps()

    def result(self, seconds: float) -> Refined:
        index = self._chosen() if self._measured() else None
        weights, steps = self._steps.weights, self._steps.done
        if index is not None and self._best is not None:
            weights, steps = weights_from(self._initial.spec, self._best), self._checks[index - 1]
        first, last = (None, None) if index is None else (self._score(0), self._score(index))
        helped = None if first is None or last is None else _order(last) > _order(first)
        return Refined(weights, self._start, steps, tuple(self._losses[:steps]), first, last, helped, seconds)

    def state(self) -> dict[str, Tensor]:
        state = {f"steps.{name}": tensor for name, tensor in self._steps.state().items()}
        state |= {
            "digest": torch.tensor(list(self._digest), dtype=torch.uint8),
            "part": torch.tensor(self._part),
            "losses": torch.tensor(self._losses, dtype=torch.float64),
            "sums": self._sums.clone(),
        }
        return state if self._best is None else {**state, "best": self._best.clone()}

    def resume(self, state: Mapping[str, Tensor]) -> None:
        missing = {"digest", "part", "losses", "sums"} - state.keys()
        if missing:
            raise CheckpointError(f"the state lacks {', '.join(sorted(missing))}; start again without it")
        if bytes(state["digest"].tolist()) != self._digest:
            raise CheckpointError(
                "the state belongs to other examples, settings, start or base; start again without it"
            )
        self._part, self._sums = int(state["part"]), state["sums"].clone()
        self._losses, self._best = state["losses"].tolist(), state.get("best")
        self._steps.resume({n.removeprefix("steps."): t for n, t in state.items() if n.startswith("steps.")})

    def _after_step(self, part: _Part) -> None:
        done = self._steps.done
        if part.held_out and done in self._checks:
            index = 1 + self._checks.index(done)
            self._measure(part, index, self._steps.weights)
            # with validation rows the run that is measured is the final one
            if part.phase == "train" and self._chosen(up_to=index) == index:
                self._best = self._steps.state()["weights"]
        if self._on_step is not None:
            before = self._most * self._part
            total = before + self._target(part) + self._most * (len(self._parts) - 1 - self._part)
            self._on_step(RefineStep(before + done, total, self._losses[-1], part.phase, self.state))

    def _measure(self, part: _Part, index: int, weights: LoRAWeights | None) -> None:
        rows = [
            EvalRow(tuple(row.prompt), (tuple(row.answer),))
            for forms in part.held_out
            for row in (forms.bare, forms.described)
            if row is not None
        ]
        scores = score_rows(self._base, [(weights, rows)])[0]
        values = [float(sum(s.correct for s in scores)), sum(s.log_likelihood for s in scores), float(len(scores))]
        self._sums[index] += torch.tensor(values, dtype=torch.float64)

    def _measured(self) -> bool:
        return bool(self._sums[0, 2] > 0)

    def _score(self, index: int) -> HeldOutScore:
        correct, log_likelihood, number = self._sums[index].tolist()
        return HeldOutScore(round(number), correct / number, log_likelihood / number)

    def _chosen(self, up_to: int | None = None) -> int:
        """Index of the best check in `sums`; the earlier one if two are equal."""
        last = len(self._checks) if up_to is None else up_to
        return max(range(1, last + 1), key=lambda i: (*_order(self._score(i)), -i))

    def _target(self, part: _Part) -> int:
        """Number of steps of a part."""
        if part.phase == "train" and not part.held_out and self._measured():
            return self._checks[self._chosen() - 1]
        return self._most

    def _new_steps(self) -> LoRASteps:
        # a chosen number of steps ends early on the schedule of all, on which it was measured
        config = self._config
        settings = StepSettings(config.learning_rate, self._most, config.max_grad_norm, config.start_decay)
        return LoRASteps(self._base, self._initial, settings)

    def _batches(self, part: _Part) -> list[list[list[Row]]]:
        """The rows of every step: those with the description as one group, the bare ones as another."""
        config, rows = self._config, part.train
        described = config.description_share if config.description else 0.0
        size = min(config.rows_per_step, len(rows) * (2 if 0 < described < 1 else 1))
        rng = np.random.default_rng([config.seed, self._part])
        order: list[int] = []
        while len(order) < size * self._most:
            order += rng.permutation(len(rows)).tolist()
        batches = []
        for step in range(self._most):
            chosen = [rows[i] for i in order[step * size : (step + 1) * size]]
            # rounded against the rows so far, so that a step of one row alternates
            split = math.floor((step + 1) * size * described) - math.floor(step * size * described)
            with_it = [forms.described for forms in chosen[:split] if forms.described is not None]
            groups = [with_it, [forms.bare for forms in chosen[split:]]]
            batches.append([group for group in groups if group])
        return batches


def _order(score: HeldOutScore) -> tuple[float, float]:
    return score.accuracy, score.log_likelihood


def _forms(base: Base, row: RefineRow, number: int, config: RefineConfig) -> _Forms:
    answer = answer_ids(base.tokenizer, row.answer)
    bare = Row(prompt_ids(base.tokenizer, row.messages), answer)
    described = None
    if config.description:
        messages = in_context(row.messages, description=config.description)
        described = Row(prompt_ids(base.tokenizer, messages), answer)
    most = min(config.max_row_tokens, base.max_positions)
    length = len((described or bare).prompt) + len(answer)
    if length > most:
        raise ContextLengthError(f"example {number} has {length} tokens, the limit is {most}; shorten or remove it")
    return _Forms(bare, described)


def _parts(train: list[_Forms], check: list[_Forms], config: RefineConfig) -> list[_Part]:
    if check:
        return [_Part("train", train, check)]
    order = np.random.default_rng(config.seed).permutation(len(train)).tolist()
    parts = []
    for turn in range(_turns(len(train), config)):
        held_out = set(order[turn::HELD_OUT_SHARE])
        parts.append(
            _Part(
                "choose",
                [forms for i, forms in enumerate(train) if i not in held_out],
                [train[i] for i in sorted(held_out)],
            )
        )
    return [*parts, _Part("train", train, [])]


def _turns(rows: int, config: RefineConfig) -> int:
    return config.turns if rows >= ENOUGH_TO_HOLD_OUT else 0


def _steps_of_a_part(rows: int, config: RefineConfig, *, chooses: bool) -> int:
    if config.steps is not None:
        return config.steps
    if rows < ENOUGH_TO_HOLD_OUT and not chooses:
        return config.few_steps
    return max(config.max_steps, math.ceil(3 * rows / config.rows_per_step))


def _digest(
    base: Base,
    start: LoRAWeights,
    rows: Sequence[RefineRow],
    validation: Sequence[RefineRow],
    config: RefineConfig,
) -> bytes:
    """Identifies the arguments of a call, for its state."""
    texts = [[[dict(message) for message in row.messages], row.answer] for row in (*rows, *validation)]
    what = {
        "config": asdict(config),
        "rows": texts,
        "validation": len(validation),
        "base": base.revision,
        "start": content_digest(start),
    }
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).digest()
