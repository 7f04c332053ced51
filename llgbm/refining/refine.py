"""Refining: an adapter learns from a few examples of its user, in seconds to minutes on a processor.

    base = load_base(BASE_0_5B, storage=fastest_training_storage())
    refined = refine(base, made.weights, [RefineRow.of("I want my money back", "billing")], RefineConfig())
    save_peft(refined.best, Path("tickets"), base_id=base.spec.base_id)

The start is a generated adapter, any other LoRA of the base, or none. With 8 examples or more, a quarter of them is
held out at first. The held-out rows choose the number of steps and tell whether the adapter is better than the start;
then a quarter as many steps follow on all examples. A part of the rows has the task's description in the context, so
that the adapter works bare and with it. The same arguments give the same result.
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
from llgbm.packed.batch import Row
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
    holds_out = not validation and _holds_out(rows, config)
    first = _steps_of_first_part(rows, config, chooses=holds_out or validation > 0)
    return first + (_finishing_steps(first) if holds_out else 0)


@dataclass(frozen=True)
class _Forms:
    """An example as tokens: bare, and with the description if there is one."""

    bare: Row
    described: Row | None


@dataclass(frozen=True)
class _Part:
    """One run of steps: its number of steps, the rows to train on and the rows to measure."""

    phase: Phase
    steps: int
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
        most = self._parts[0].steps
        every = most if config.steps is not None else config.check_every
        self._checks: list[int] = sorted({*range(every, most + 1, every), most})
        self._digest = _digest(base, self._initial, rows, validation, config)
        # sums over held-out rows: correct, log-likelihood, number; for the start and for every check
        self._sums = torch.zeros(1 + len(self._checks), 3, dtype=torch.float64)
        self._part = 0
        self._losses: list[float] = []
        self._best: Tensor | None = None
        self._steps = self._new_steps()

    def run(self) -> None:
        for number in range(self._part, len(self._parts)):
            if number > self._part:
                self._finish()
            part = self._parts[number]
            if part.held_out and self._steps.done == 0:
                self._measure(part, 0, self._start)
            for groups in self._batches(part)[self._steps.done :]:
                self._losses.append(self._steps.step(groups))
                self._after_step(part)

    def result(self, seconds: float) -> Refined:
        index = self._chosen() if self._measured() else None
        first, last = (None, None) if index is None else (self._score(0), self._score(index))
        helped = None if first is None or last is None else _order(last) > _order(first)
        weights, losses = self._steps.weights, self._losses
        if index is not None and self._best is not None and len(self._parts) == 1:
            weights, losses = weights_from(self._initial.spec, self._best), losses[: self._checks[index - 1]]
        return Refined(weights, self._start, len(losses), tuple(losses), first, last, helped, seconds)

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
        self._steps = self._new_steps()
        self._steps.resume({n.removeprefix("steps."): t for n, t in state.items() if n.startswith("steps.")})

    def _after_step(self, part: _Part) -> None:
        done = self._steps.done
        if part.held_out and done in self._checks:
            index = 1 + self._checks.index(done)
            self._measure(part, index, self._steps.weights)
            if self._chosen(up_to=index) == index:
                self._best = self._steps.state()["weights"]
        if self._on_step is not None:
            before = sum(earlier.steps for earlier in self._parts[: self._part])
            total = sum(part.steps for part in self._parts)
            self._on_step(RefineStep(before + done, total, self._losses[-1], part.phase, self.state))

    def _finish(self) -> None:
        """Go on from the adapter of the chosen step, with all rows."""
        self._part += 1
        self._losses = self._losses[: self._checks[self._chosen() - 1]]
        self._steps = self._new_steps()
        if self._best is not None:
            self._steps.resume({"weights": self._best, "done": torch.tensor(0)})

    def _measure(self, part: _Part, index: int, weights: LoRAWeights | None) -> None:
        rows = [
            EvalRow(tuple(row.prompt), (tuple(row.answer),))
            for forms in part.held_out
            for row in (forms.bare, forms.described)
            if row is not None
        ]
        scores = score_rows(self._base, [(weights, rows)])[0]
        values = [float(sum(s.correct for s in scores)), sum(s.log_likelihood for s in scores), float(len(scores))]
        self._sums[index] = torch.tensor(values, dtype=torch.float64)

    def _measured(self) -> bool:
        return bool(self._sums[0, 2] > 0)

    def _score(self, index: int) -> HeldOutScore:
        correct, log_likelihood, number = self._sums[index].tolist()
        return HeldOutScore(round(number), correct / number, log_likelihood / number)

    def _chosen(self, up_to: int | None = None) -> int:
        """Index of the best check in `sums`: the last one with the most right answers.

        Where none has a right answer, as with answers in free words, it is the one with the highest log-likelihood.
        That does not decide between equal accuracies, since it falls while more answers become right.
        """
        found = range(1, (len(self._checks) if up_to is None else up_to) + 1)
        scores = {i: self._score(i) for i in found}
        if not any(score.accuracy for score in scores.values()):
            return max(found, key=lambda i: (scores[i].log_likelihood, -i))
        return max(found, key=lambda i: (scores[i].accuracy, i))

    def _new_steps(self) -> LoRASteps:
        config, steps = self._config, self._parts[self._part].steps
        rate = config.learning_rate if self._part == 0 else config.learning_rate / 2
        return LoRASteps(self._base, self._initial, StepSettings(rate, steps, config.max_grad_norm, config.start_decay))

    def _batches(self, part: _Part) -> list[list[list[Row]]]:
        """The rows of every step: those with the description as one group, the bare ones as another."""
        config, rows = self._config, part.train
        described = config.description_share if config.description else 0.0
        size = min(config.rows_per_step, len(rows) * (2 if 0 < described < 1 else 1))
        rng = np.random.default_rng([config.seed, self._part])
        order: list[int] = []
        while len(order) < size * part.steps:
            order += rng.permutation(len(rows)).tolist()
        batches = []
        for step in range(part.steps):
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
    holds_out = not check and _holds_out(len(train), config)
    steps = _steps_of_first_part(len(train), config, chooses=holds_out or bool(check))
    if not holds_out:
        return [_Part("train", steps, train, check)]
    order = np.random.default_rng(config.seed).permutation(len(train))
    held_out = set(order[::HELD_OUT_SHARE].tolist())
    return [
        _Part(
            "choose",
            steps,
            [forms for i, forms in enumerate(train) if i not in held_out],
            [train[i] for i in sorted(held_out)],
        ),
        _Part("train", _finishing_steps(steps), train, []),
    ]


def _holds_out(rows: int, config: RefineConfig) -> bool:
    return config.hold_out and rows >= ENOUGH_TO_HOLD_OUT


def _steps_of_first_part(rows: int, config: RefineConfig, *, chooses: bool) -> int:
    """Number of steps before those on all rows; without held-out rows they are all steps."""
    if config.steps is not None:
        return config.steps
    if rows < ENOUGH_TO_HOLD_OUT and not chooses:
        return config.few_steps
    return max(config.max_steps, math.ceil(3 * rows / config.rows_per_step))


def _finishing_steps(first: int) -> int:
    """Steps on all rows after the chosen one."""
    return math.ceil(first / HELD_OUT_SHARE)


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
