"""A decoder that answers from a script: it implements `service.engine.interface.DecoderLike` without a model."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from llgbm.decoding.decoder import DecodeRequest, Step

Script = Callable[[DecodeRequest], Sequence[int]]


class DummyDecoder:
    """Gives every row the tokens of `script`; its last one is the token that stops it.

    Attributes:
        rows: those that run.
        step_seconds: how long a step takes.
        hold: while it is cleared, no step ends.
        held: a step is waiting for `hold`.
        sizes: number of rows of each step.
        added, removed: all rows that came, and those that were taken out.
        fail_step, fail_add: raise this the next time.
    """

    def __init__(self, script: Script) -> None:
        self._script = script
        self._left: dict[DecodeRequest, list[int]] = {}
        self.step_seconds = 0.0
        self.hold = threading.Event()
        self.hold.set()
        self.held = threading.Event()
        self.sizes: list[int] = []
        self.added: list[DecodeRequest] = []
        self.removed: list[DecodeRequest] = []
        self.fail_step: Exception | None = None
        self.fail_add: Callable[[DecodeRequest], bool] = lambda row: False

    def renewed(self) -> DummyDecoder:
        """Itself without rows, as a new one would be."""
        self._left.clear()
        return self

    @property
    def rows(self) -> list[DecodeRequest]:
        return list(self._left)

    def add(self, rows: Sequence[DecodeRequest]) -> list[Step]:
        if any(self.fail_add(row) for row in rows):
            raise ValueError("a bad row")
        for row in rows:
            self._left[row] = list(self._script(row))
        self.added += rows
        return [self._next(row) for row in rows]

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
        return self._left.pop(row, None) is not None
