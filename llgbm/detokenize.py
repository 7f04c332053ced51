"""From tokens to text as they come: no torn characters, and nothing of a stop string.

For byte-level BPE tokenizers, as Qwen's are: each token is a run of bytes, so the pieces put together are
just what the tokenizer makes of all tokens at once.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

from llgbm.errors import ConfigError


@cache
def byte_of_character() -> dict[str, int]:
    """The printable stand-ins that GPT-2's byte-level tokenizers use for the 256 bytes, in order of bytes."""
    ranges = (("!", "~"), ("¡", "¬"), ("®", "ÿ"))
    printable = {byte for first, last in ranges for byte in range(ord(first), ord(last) + 1)}
    others = [byte for byte in range(256) if byte not in printable]
    stand_ins = {byte: chr(256 + i) for i, byte in enumerate(others)}
    return {stand_ins.get(byte, chr(byte)): byte for byte in range(256)}


class StreamDecoder:
    """Turns the tokens of one answer into text that can be sent at once.

    Held back are the bytes of a character that is not whole yet, and what may turn out to be the start of a
    stop string. Special tokens give no text. The text ends before the stop string that is complete first,
    however the text is cut into tokens.

    Args:
        tokenizer: a byte-level transformers tokenizer.
        stop: strings that end the answer; they are not part of it.

    Raises:
        ConfigError: a stop string is empty.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()) -> None:
        if not all(stop):
            raise ConfigError("a stop string must not be empty")
        self._tokenizer = tokenizer
        # all_special_ids would leave out those that have no role of their own, such as <|im_start|>
        self._special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._stop = tuple(stop)
        self._characters = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""
        self._stopped: str | None = None

    @property
    def stopped(self) -> str | None:
        """The stop string that ended the answer; None if none did."""
        return self._stopped

    def push(self, token: int) -> str:
        """The text that is certain after one more token; often empty, and always so after a stop string."""
        if token in self._special:
            return ""
        return self._release(self._characters.decode(self._bytes(token)))

    def finish(self) -> str:
        """The text that was held back, when no more tokens come; a torn character becomes U+FFFD."""
        text = self._release(self._characters.decode(b"", final=True))
        if self._stopped is None:
            text, self._held = text + self._held, ""
        return text

    def _bytes(self, token: int) -> bytes:
        text: str | None = self._tokenizer.convert_ids_to_tokens(token)
        if text is None:  # no such token: the tokenizer skips it too
            return b""
        table = byte_of_character()
        # an added token is written as it is, which a character without a byte gives away
        return bytes(table[c] for c in text) if all(c in table for c in text) else text.encode()

    def _release(self, new: str) -> str:
        if self._stopped is not None:
            return ""
        text = self._held + new
        found = [(start + len(s), start, s) for s in self._stop if (start := text.find(s)) >= 0]
        if found:
            _, start, self._stopped = min(found)
            self._held = ""
            return text[:start]
        keep = _longest_start(text, self._stop)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _longest_start(text: str, stop: Iterable[str]) -> int:
    """Length of the longest end of `text` that a stop string starts with."""
    return max((n for s in stop for n in range(1, min(len(s), len(text) + 1)) if text.endswith(s[:n])), default=0)
