"""A decoder with scripted answers: it implements `service.engine.interface.DecoderLike` without a model."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from llgbm.decoding.decoder import DecodeRequest, PrefillError, Step

Script = Callable[[DecodeRequest], Sequence[int]]


class DummyDecoder:
    """Gives every row the tokens of `script`; the last one is the stop token.

    Attributes:
        rows: the running rows.
        step_seconds: duration of a step.
        hold: while it is cleared, no step ends.
        held: a step is waiting for `hold`.
        sizes: number of rows of each step.
        added, removed: all rows that were added, and those that were removed.
        turns: for each turn of prompts, the number of steps before it.
        pieces: number of turns that a row's prompt takes.
        fail_step: raised by the next step.
        fail_start, fail_prefill: whether a row is refused, and whether its prompt cannot be read.
    """

    def __init__(self, script: Script) -> None:
        self._script = script
        self._line: dict[DecodeRequest, int] = {}
        self._left: dict[DecodeRequest, list[int]] = {}
        self.step_seconds = 0.0
        self.hold = threading.Event()
        self.hold.set()
        self.held = threading.Event()
        self.sizes: list[int] = []
        self.added: list[DecodeRequest] = []
        self.removed: list[DecodeRequest] = []
        self.turns: list[int] = []
        self.pieces: Callable[[DecodeRequest], int] = lambda row: 1
        self.fail_step: Exception | None = None
        self.fail_start: Callable[[DecodeRequest], bool] = lambda row: False
        self.fail_prefill: Callable[[DecodeRequest], bool] = lambda row: False

    def renewed(self) -> DummyDecoder:
        """The same decoder without rows, like a new one."""
        self._line.clear()
        self._left.clear()
        return self

    @property
    def rows(self) -> list[DecodeRequest]:
        return list(self._left)

    @property
    def line(self) -> list[DecodeRequest]:
        return list(self._line)

    def start(self, row: DecodeRequest) -> None:
        if self.fail_start(row):
            raise ValueError("a bad row")
        self._line[row] = self.pieces(row)
        self.added.append(row)

    def prefill(self) -> list[Step]:
        """Read one piece of each prompt in line."""
        self.turns.append(len(self.sizes))
        steps: list[Step] = []
        for row in self.line:
            if self.fail_prefill(row):
                del self._line[row]
                raise PrefillError([row], steps, MemoryError("no memory"))
            self._line[row] -= 1
            if self._line[row] == 0:
                del self._line[row]
                self._left[row] = list(self._script(row))
                steps.append(self._next(row))
        return steps

    def step(self) -> list[Step]:
        time.sleep(self.step_seconds)
        if not self.hold.is_set():
            self.held.set()
            self.hold.wait(20)
            self.held.clear()
        if self.fail_step is not None:
            error, self.fail_step = self.fail_step, None
            raise error
        self.sizes.append(len(self._left))
        return [self._next(row) for row in self.rows]

    def _next(self, row: DecodeRequest) -> Step:
        left = self._left[row]
        token = left.pop(0)
        if token < 0:
            row.finish_reason = "error"
        elif not left:
            row.finish_reason = "stop"
        else:
            row.output.append(token)
            if len(row.output) == row.params.max_tokens:
                row.finish_reason = "length"
        if row.finish_reason is not None:
            del self._left[row]
        wanted = row.params.logprobs
        top = tuple((token + i, -0.5 - i) for i in range(wanted or 0))
        return Step(row, token, None if wanted is None else -0.5, top, row.finish_reason)

    def remove(self, row: DecodeRequest) -> bool:
        self.removed.append(row)
        return self._line.pop(row, None) is not None or self._left.pop(row, None) is not None
