"""Probes -> token ids, and the measurement of probes on a base.

Truncation removes the middle of a text that is too long, never the chat template around it. So the measured position
of every chat probe is the end of the assistant's header. Both ends of the text stay, since instructions are there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from llgbm.base import Base, numerics_of
from llgbm.config import ModelSpec
from llgbm.errors import ConfigError
from llgbm.measuring.measurement import Measurement
from llgbm.probes import ProbeSet

TRUNCATION = "middle"
"""The way in which long probes are cut; part of every measurement."""

_PLACEHOLDER = "llgbm-probe-text"


def measurement_of(base: Base, probes: ProbeSet, layers: Sequence[int] | None = None) -> Measurement:
    """The measurement of `probes` on `base`.

    Args:
        layers: decoder layers, -1 for the last; None for the last only.

    Raises:
        ConfigError: there is no such layer, or `max_length` leaves no room for text in the template.
    """
    template = base.tokenizer.get_chat_template() if probes.chat else ""
    return Measurement(
        probes=probes.digest(),
        template=_sha256(template) if probes.chat else "",
        truncation=TRUNCATION,
        max_length=probes.max_length,
        tokens=_sha256(json.dumps(encode_probes(base.tokenizer, probes))),
        revision=base.revision,
        dtype=numerics_of(base),
        layers=resolve_layers(base.spec, layers),
        num_probes=len(probes),
        hidden_size=base.spec.hidden_size,
    )


def resolve_layers(spec: ModelSpec, layers: Sequence[int] | None) -> tuple[int, ...]:
    """Distinct layer indices, ascending; negative ones count from the end, None is the last.

    Raises:
        ConfigError: there is no such layer, or the list is empty.
    """
    asked = [-1] if layers is None else list(layers)
    if not asked or not all(-spec.num_layers <= i < spec.num_layers for i in asked):
        raise ConfigError(f"layers must be some of 0 to {spec.num_layers - 1} (or negative, from the end), not {asked}")
    return tuple(sorted({i % spec.num_layers for i in asked}))


def spread_layers(spec: ModelSpec, count: int) -> tuple[int, ...]:
    """`count` layers at equal distances, the last one included: 3 of 24 layers are (7, 15, 23).

    Raises:
        ConfigError: `count` is below 1 or above the number of layers.
    """
    if not 1 <= count <= spec.num_layers:
        raise ConfigError(f"{spec.name} has 1 to {spec.num_layers} layers to read, not {count}")
    return tuple((i + 1) * spec.num_layers // count - 1 for i in range(count))


def encode_probes(tokenizer: Any, probes: ProbeSet) -> list[list[int]]:
    """Token ids of every probe, at most `probes.max_length` each, up to the measured position.

    Raises:
        ConfigError: `max_length` leaves no room for text in the template.
    """
    head, tail = _frame(tokenizer, probes)
    return [_encode(tokenizer, head, text, tail, probes.max_length) for text in probes.texts]


def _frame(tokenizer: Any, probes: ProbeSet) -> tuple[str, str]:
    """The chat template's text before and after the user's text."""
    if not probes.chat:
        return "", ""
    messages = [{"role": "user", "content": _PLACEHOLDER}]
    if probes.system is not None:
        messages.insert(0, {"role": "system", "content": probes.system})
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    head, found, tail = rendered.rpartition(_PLACEHOLDER)
    if not found:
        raise ConfigError(
            "the chat template does not contain the user's text unchanged, so probes cannot be placed in it"
        )
    return head, tail


def _encode(tokenizer: Any, head: str, text: str, tail: str, limit: int) -> list[int]:
    ids = _ids(tokenizer, head + text + tail)
    if len(ids) <= limit:
        return ids
    before, after = _ids(tokenizer, head), _ids(tokenizer, tail)
    room = limit - len(before) - len(after)
    if room < 1:
        raise ConfigError(
            f"max_length {limit} leaves no room for text: the chat template alone takes "
            f"{len(before) + len(after)} tokens"
        )
    inner = _ids(tokenizer, text)
    # encoded one by one, the parts may be shorter than the whole: then nothing is cut
    cut = max(0, len(inner) - room)
    start = (room + 1) // 2
    return [*before, *inner[:start], *inner[start + cut :], *after]


def _ids(tokenizer: Any, text: str) -> list[int]:
    return [int(i) for i in tokenizer(text, add_special_tokens=False).input_ids] if text else []


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
