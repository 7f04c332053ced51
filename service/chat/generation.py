"""The answers to one request while they are decoded: the tokens of its rows as pieces of text."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from llgbm.conditioning.context_choice import Context
from llgbm.decoding.decoder import Step
from service.adapters.store import AdapterReference
from service.chat.text_stream import TextStream
from service.engine.interface import TokenStream

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Piece:
    """The text that one token adds to an answer, perhaps empty. The last piece of an answer has a `finish_reason`."""

    index: int
    text: str
    step: Step | None = None
    finish_reason: FinishReason | None = None


@dataclass
class Answer:
    """One complete answer."""

    text: str = ""
    steps: list[Step] = field(default_factory=list)
    finish_reason: FinishReason = "length"


class Generation:
    """The answers to one request while they are decoded.

    Attributes:
        adapter_id: id of the adapter that answers; None for the plain base.
        modules_hooked: number of modules that the adapter changes.
        prompt_tokens: length of the prompt.
        known_tokens: of these, those that were not read again for the first answer; None before its first token, or if
            the engine does not say.
        context_used: the texts of the task in the context, in addition to the conversation.
        scale: factor on the adapter's effect; None without an adapter.
        warning: of the adapter; None if there is none.
        completion_tokens: number of tokens so far, of all answers.
        started: time of the start in seconds, by `time.perf_counter`; `first_token` is that of the first token.
    """

    def __init__(
        self,
        streams: Sequence[TokenStream],
        texts: Sequence[TextStream],
        adapter: AdapterReference | None,
        prompt_tokens: int,
        context_used: Context = "none",
        scale: float | None = None,
        warning: str | None = None,
    ) -> None:
        self._streams, self._texts, self._adapter = streams, texts, adapter
        self.context_used, self.scale, self.warning = context_used, scale, warning
        self.adapter_id = None if adapter is None else adapter.id
        self.modules_hooked = 0 if adapter is None else adapter.modules
        self.prompt_tokens, self.completion_tokens = prompt_tokens, 0
        self.known_tokens: int | None = None
        self.started = time.perf_counter()
        self.first_token: float | None = None

    async def pieces(self) -> AsyncIterator[Piece]:
        """The pieces of all answers, in the order in which they are decoded.

        Raises:
            EngineError: the deadline has passed, the service shuts down, or decoding failed.
        """
        queue: asyncio.Queue[Piece | Exception | None] = asyncio.Queue()
        tasks = [
            asyncio.create_task(self._pump(index, stream, text, queue))
            for index, (stream, text) in enumerate(zip(self._streams, self._texts, strict=True))
        ]
        try:
            ended = 0
            while ended < len(tasks):
                item = await queue.get()
                if isinstance(item, Exception):
                    raise item
                if item is None:
                    ended += 1
                else:
                    yield item
        finally:
            for task in tasks:
                task.cancel()
            self.close()

    async def _pump(
        self, index: int, stream: TokenStream, text: TextStream, queue: asyncio.Queue[Piece | Exception | None]
    ) -> None:
        try:
            async for step in stream:
                self.first_token = self.first_token or time.perf_counter()
                self.completion_tokens += 1
                if index == 0:
                    self.known_tokens = step.row.known_tokens
                ends_turn = step.finish_reason == "stop"
                piece = "" if ends_turn else text.push(step.token)
                reason = _reason(step)
                if text.stopped:
                    stream.cancel("stop")
                    reason = "stop"
                elif reason is not None:
                    piece += text.finish()
                    reason = "stop" if text.stopped else reason
                queue.put_nowait(Piece(index, piece, None if ends_turn else step, reason))
            queue.put_nowait(None)
        except Exception as error:  # `pieces` raises it
            queue.put_nowait(error)

    async def answers(self) -> list[Answer]:
        """All answers, complete. Raises EngineError as `pieces`."""
        answers = [Answer() for _ in self._streams]
        async for piece in self.pieces():
            answer = answers[piece.index]
            answer.text += piece.text
            if piece.step is not None:
                answer.steps.append(piece.step)
            if piece.finish_reason is not None:
                answer.finish_reason = piece.finish_reason
        return answers

    def close(self) -> None:
        """Free the rows and the adapter. A second call does nothing."""
        for stream in self._streams:
            stream.cancel()
        if self._adapter is not None:
            self._adapter.release()


def _reason(step: Step) -> FinishReason | None:
    """Why the row ended with this step. For a failed row the engine raises an error, so it is not seen here."""
    return None if step.finish_reason == "error" else step.finish_reason
