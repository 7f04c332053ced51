"""The bytes of byte-level tokens, and the table between the two that GPT-2's tokenizers use."""

from __future__ import annotations

from typing import Any


def byte_vocabulary() -> dict[str, int]:
    """The printable stand-ins that GPT-2's byte-level tokenizers use for the 256 bytes, in order of bytes."""
    ranges = (("!", "~"), ("¡", "¬"), ("®", "ÿ"))
    printable = {byte for first, last in ranges for byte in range(ord(first), ord(last) + 1)}
    others = [byte for byte in range(256) if byte not in printable]
    stand_ins = {byte: chr(256 + i) for i, byte in enumerate(others)}
    return {stand_ins.get(byte, chr(byte)): byte for byte in range(256)}


_BYTE_OF = byte_vocabulary()


def token_bytes(tokenizer: Any, token: int) -> bytes | None:
    """The bytes of one token of a byte-level tokenizer; a special token is its own name, an unknown id None."""
    name = tokenizer.convert_ids_to_tokens(token)
    if name is None:
        return None
    try:
        return bytes(map(_BYTE_OF.__getitem__, name))
    except KeyError:
        name_bytes: bytes = name.encode()
        return name_bytes
