"""The examples, settings and results of refining."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from llgbm.errors import ConfigError
from llgbm.lora import LoRAWeights

Phase = Literal["choose", "train"]
"""`choose`: steps with a quarter of the rows held out, which choose their number. `train`: steps on all rows."""
ENOUGH_TO_HOLD_OUT = 8
HELD_OUT_SHARE = 4
"""One row in this number is held out; afterwards 1 / HELD_OUT_SHARE as many steps follow on all rows."""


@dataclass(frozen=True)
class RefineRow:
    """One example.

    Attributes:
        messages: the conversation before the answer, with `role` and `content`; there is a user turn.
        answer: the assistant's answer to learn.

    Raises:
        ConfigError: there is no user turn, or the answer is empty.
    """

    messages: tuple[Mapping[str, str], ...]
    answer: str

    def __post_init__(self) -> None:
        if not any(message["role"] == "user" for message in self.messages):
            raise ConfigError("an example needs a turn of the user before its answer")
        if not self.answer.strip():
            raise ConfigError("the answer of an example is empty; give the text that the model should write")

    @classmethod
    def of(cls, given: str, answer: str) -> RefineRow:
        """An example of one input and its answer."""
        return cls(({"role": "user", "content": given},), answer)


@dataclass(frozen=True)
class RefineConfig:
    """Settings of `refine`; rate, steps and rows of a step were tried with 16 examples of held-out families."""

    description: str | None = None
    """The sentence that describes the task; a part of the rows has it in the context."""
    description_share: float = 0.5
    """Share of the rows that have the description in the context, 0 to 1."""
    steps: int | None = None
    """Number of steps, without those on all examples that follow if some are held out; none chooses it with held-out
    examples, or takes `few_steps` with less than 8 examples."""
    max_steps: int = 20
    """Largest number of steps that the held-out examples may choose; with more than 53 examples it is three epochs."""
    check_every: int = 5
    """Steps between two measurements on the held-out examples."""
    hold_out: bool = True
    """Hold out a quarter of 8 or more examples, to choose the number of steps and to tell whether refining helped;
    without it `max_steps` are made on all examples."""
    few_steps: int = 12
    """Number of steps with less than 8 examples."""
    rows_per_step: int = 8
    """Rows of a step."""
    learning_rate: float = 8e-4
    """Peak learning rate of AdamW; it rises over a tenth of the steps and falls linearly to zero."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this global norm."""
    start_decay: float = 5.0
    """Weight decay towards the start, times the learning rate for each step."""
    max_row_tokens: int = 2048
    """Maximum length of a row in tokens, description included."""
    seed: int = 0
    """Seed of the order of rows, the held-out quarters and, without a start, the initial adapter."""

    def __post_init__(self) -> None:
        if min(self.max_steps, self.check_every, self.few_steps, self.rows_per_step, self.max_row_tokens) < 1:
            raise ConfigError("max_steps, check_every, few_steps, rows_per_step and max_row_tokens must be at least 1")
        if self.steps is not None and self.steps < 1:
            raise ConfigError(f"steps must be at least 1, not {self.steps}")
        if not 0 <= self.description_share <= 1:
            raise ConfigError("description_share must be between 0 and 1")
        if not (0 < self.learning_rate < math.inf and self.max_grad_norm > 0 and 0 <= self.start_decay < math.inf):
            raise ConfigError("learning_rate and max_grad_norm must be positive, start_decay not negative")
        if self.seed < 0:
            raise ConfigError("seed must not be negative")


@dataclass(frozen=True)
class HeldOutScore:
    """Score on examples that were not trained on.

    Attributes:
        rows: number of rows; an example counts twice if it is measured bare and with the description.
        accuracy: share of the rows that greedy decoding answers exactly.
        log_likelihood: of the answers, mean over the tokens of a row and over rows, nats.
    """

    rows: int
    accuracy: float
    log_likelihood: float


@dataclass(frozen=True, eq=False)
class RefineStep:
    """A step that was just made.

    Attributes:
        step: number of the step through all phases, from 1.
        total: number of steps that are at most needed.
        loss: of the step's rows, nats.
        phase: see `Phase`.
        state: gives the state for `resume`, a dict of new CPU tensors.
    """

    step: int
    total: int
    loss: float
    phase: Phase
    state: Callable[[], dict[str, Tensor]]


@dataclass(frozen=True, eq=False)
class Refined:
    """The result of `refine`.

    Attributes:
        weights: the refined adapter, float32 on the CPU.
        start: the adapter that training started from; None without one.
        steps: number of steps of `weights`.
        losses: loss of each of these steps, nats.
        start_held_out: score of the start (the plain base without one); None if nothing was held out.
        held_out: score of the adapter before it saw the held-out examples; None if nothing was held out. The same
            examples chose the number of steps, so it is a little too good.
        helped: whether refining is better than the start on held-out examples; None if nothing was held out.
        seconds: wall time of this call.
    """

    weights: LoRAWeights
    start: LoRAWeights | None
    steps: int
    losses: tuple[float, ...]
    start_held_out: HeldOutScore | None
    held_out: HeldOutScore | None
    helped: bool | None
    seconds: float

    @property
    def best(self) -> LoRAWeights | None:
        """The better choice: `start` if refining did not help (None for the plain base), else `weights`."""
        return self.start if self.helped is False else self.weights
