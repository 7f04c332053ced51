"""Turns token ids into text as they come, in whole characters and without stop strings.

A byte-level token may be a part of a character, so text is returned when its last character is complete. The possible
start of a stop string is held back until it is certain that it is not one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

_BROKEN = "\ufffd"
"""A decoder writes this for bytes that are not a character. At the end of a text the next token may complete it."""
_LONGEST_WINDOW = 64
"""Number of tokens after which bytes that form no character are returned as U+FFFD."""


class TextStream:
    """Turns the tokens of one answer into pieces of text.

    Args:
        decode: token ids -> text; decoding all ids at once must give the concatenation of the pieces.
        stop: strings that end the answer and are not part of it.

    Attributes:
        text: the text so far, without the part that is held back.
        stopped: whether a stop string has ended the answer.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str] = ()) -> None:
        self._decode, self._stop = decode, tuple(stop)
        self._ids: list[int] = []
        self._start = self._read = 0  # the window of tokens; those before _read only give context
        self._given = 0  # characters of the window that were returned
        self._held = ""
        self.text = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that this token completes; empty while a character or a possible stop string is unfinished."""
        if self.stopped:
            return ""
        self._ids.append(token)
        return self._release(self._new_text(last=False), last=False)

    def finish(self) -> str:
        """The text that was held back; call it after the last token."""
        return "" if self.stopped else self._release(self._new_text(last=True), last=True)

    def _new_text(self, *, last: bool) -> str:
        # A token is decoded together with those before it, since the first token of a text may lose its leading blank.
        # The window stays short, so the cost of a step does not grow with the answer.
        text = self._decode(self._ids[self._start :])
        broken = text.endswith(_BROKEN) and not last
        new = text[self._given : -1] if broken else text[self._given :]
        if broken and len(self._ids) - self._read < _LONGEST_WINDOW:
            self._given += len(new)
        else:
            self._start, self._read = self._read, len(self._ids)
            self._given = len(self._decode(self._ids[self._start :])) - broken
        return new

    def _release(self, piece: str, *, last: bool) -> str:
        text = self._held + piece
        found = [at for stop in self._stop if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held, text = True, "", text[: min(found)]
        else:
            keep = 0 if last else max((_overlap(text, stop) for stop in self._stop), default=0)
            self._held, text = text[len(text) - keep :], text[: len(text) - keep]
        self.text += text
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a start of `stop`."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
