"""Truncation keeps the assistant position; every change of the numbers changes the measurement."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llgbm.base import Base, load_base, require_gradients
from llgbm.config import model_spec
from llgbm.errors import ConfigError
from llgbm.linears.frozen_linear import Storage
from llgbm.measuring.measurement import Measurement
from llgbm.measuring.probe_encoding import encode_probes, measurement_of, resolve_layers, spread_layers
from llgbm.probes import ProbeSet

HEADER = "<|im_end|>\n<|im_start|>assistant\n"
LONG = "abcdefghij" * 30


def decoded(base: Base, probes: ProbeSet) -> list[str]:
    return [str(base.tokenizer.decode(ids)) for ids in encode_probes(base.tokenizer, probes)]


@settings(max_examples=25, deadline=None)
@given(st.text(min_size=1, max_size=300).filter(lambda t: bool(t.strip())), st.integers(140, 260))
def test_truncation_keeps_the_assistant_position(tiny_base: Base, text: str, limit: int) -> None:
    (ids,) = encode_probes(tiny_base.tokenizer, ProbeSet((text,), max_length=limit))
    header = tiny_base.tokenizer(HEADER, add_special_tokens=False).input_ids
    assert len(ids) <= limit
    assert ids[-len(header) :] == header


def test_truncation_takes_the_middle_of_the_text_and_fills_the_limit(tiny_base: Base) -> None:
    text = "START" + LONG + "END"
    (ids,) = encode_probes(tiny_base.tokenizer, ProbeSet((text,), max_length=160))
    (shown,) = decoded(tiny_base, ProbeSet((text,), max_length=160))
    assert len(ids) == 160
    assert "user\nSTART" in shown
    assert shown.endswith("END" + HEADER)
    assert shown.startswith("<|im_start|>system")


def test_raw_probes_keep_both_ends(tiny_base: Base) -> None:
    (shown,) = decoded(tiny_base, ProbeSet(("START" + LONG + "END",), chat=False, max_length=20))
    assert shown.startswith("START")
    assert shown.endswith("END")
    assert len(shown) == 20


def test_short_probes_are_what_the_template_gives(tiny_base: Base) -> None:
    expected = tiny_base.tokenizer.apply_chat_template(
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
        tokenize=False,
        add_generation_prompt=True,
    )
    assert decoded(tiny_base, ProbeSet(("Hi",), max_length=200, system="Be brief.")) == [expected]
    assert decoded(tiny_base, ProbeSet(("Hi",), chat=False)) == ["Hi"]


def test_a_limit_below_the_template_is_refused(tiny_base: Base) -> None:
    with pytest.raises(ConfigError, match="leaves no room"):
        encode_probes(tiny_base.tokenizer, ProbeSet(("Hi",), max_length=10))


def test_layers_are_resolved_and_spread() -> None:
    spec = model_spec("qwen2.5-0.5b")
    assert resolve_layers(spec, None) == (23,)
    assert resolve_layers(spec, [-1, 5, 23, -19]) == (5, 23)
    assert spread_layers(spec, 3) == (7, 15, 23)
    assert spread_layers(spec, 24) == tuple(range(24))
    bad: list[Callable[[], object]] = [
        lambda: resolve_layers(spec, []),
        lambda: resolve_layers(spec, [24]),
        lambda: resolve_layers(spec, [-25]),
        lambda: spread_layers(spec, 25),
        lambda: spread_layers(spec, 0),
    ]
    for call in bad:
        with pytest.raises(ConfigError):
            call()


def test_measurement_names_template_storage_and_revision(tiny_base: Base, tiny_base_path: Path) -> None:
    probes = ProbeSet(("one", "two"), max_length=200)
    plain = measurement_of(tiny_base, probes)
    assert plain == measurement_of(tiny_base, probes, [-1])
    assert plain.shape == (2, 1, 64)
    assert (plain.dtype, plain.revision) == ("float32", tiny_base.revision)
    other = load_base(tiny_base_path, storage="bfloat16")
    other.tokenizer.chat_template = other.tokenizer.chat_template.replace("helpful assistant", "parrot")
    changed = measurement_of(other, probes)
    assert changed.template != plain.template
    assert changed.tokens != plain.tokens
    raw = replace(probes, chat=False)
    assert measurement_of(other, raw).template == measurement_of(tiny_base, raw).template == ""


@pytest.mark.parametrize("storage", get_args(Storage))
def test_a_base_is_measured_under_the_name_of_its_storage(
    storage: Storage, tiny_base_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # bfloat16_activations is refused where the processor does not multiply in it
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    base = load_base(tiny_base_path, storage=storage)
    assert measurement_of(base, ProbeSet(("one",), max_length=200)).dtype == storage
    if storage == "int8":
        with pytest.raises(ConfigError, match="to train through it, load it with int8_training"):
            require_gradients(base)
    else:
        require_gradients(base)


def test_measurement_survives_its_dict(tiny_base: Base) -> None:
    measurement = measurement_of(tiny_base, ProbeSet(("one",), max_length=200), [0, 1])
    assert Measurement.from_dict(measurement.to_dict()) == measurement
