import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from safetensors.torch import load, load_file, save
from torch import Tensor
from transformers import AutoModelForCausalLM

from llgbm.adapters import peft_io
from llgbm.adapters.peft_io import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    adapter_config,
    content_digest,
    from_bytes,
    load_peft,
    save_peft,
    to_bytes,
)
from llgbm.config import TARGET_MODULES, LoRASpec, lora_spec, model_spec
from llgbm.errors import AdapterFormatError
from llgbm.lora import LoRAWeights
from tests.fixtures import random_lora, same_weights

TINY = model_spec("tiny")
SPEC = lora_spec("tiny")
SMALL = LoRASpec.for_model(TINY, rank=1, alpha=2.0, targets=("k_proj", "v_proj"), layers=(0,))
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SMALL_BYTES = to_bytes(random_lora(SMALL, 0))
SMALL_CONFIG = adapter_config(SMALL, TINY.base_id)


def rewritten(change: Callable[[dict[str, Tensor]], None]) -> bytes:
    tensors = load(SMALL_BYTES)
    change(tensors)
    return save(tensors)


def with_header(header: dict[str, Any], body: bytes = b"") -> bytes:
    raw = json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + body


def key(side: str, name: str = SMALL.names[0]) -> str:
    return f"base_model.model.{name}.lora_{side}.weight"


# The identity


@given(
    layers=st.sets(st.integers(0, 1), min_size=1),
    targets=st.sets(st.sampled_from(TARGET_MODULES), min_size=1),
    rank=st.integers(1, 9),
    alpha=st.floats(0, 99),
    rslora=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 99),
)
def test_bytes_round_trip_is_the_identity(
    layers: set[int],
    targets: set[str],
    rank: int,
    alpha: float,
    rslora: bool,
    dtype: torch.dtype,
    seed: int,
) -> None:
    ordered = [t for t in TARGET_MODULES if t in targets]
    grid = LoRASpec.for_model(TINY, targets=ordered, layers=sorted(layers))
    weights = random_lora(LoRASpec(rank, 1.0, grid.modules), seed).to(dtype)
    weights = LoRAWeights(LoRASpec(rank, alpha, grid.modules, rslora), weights.a, weights.b)
    back = from_bytes(to_bytes(weights), adapter_config(weights.spec, "b"))
    assert same_weights(weights, back)
    assert back.dtype == dtype
    assert content_digest(back) == content_digest(weights)


def test_folder_round_trip_is_the_identity(tmp_path: Path) -> None:
    weights = random_lora(SPEC, 1)
    folder = tmp_path / "new" / "store" / "lora-1"
    save_peft(weights, folder, base_id=TINY.base_id)
    back, base_id = load_peft(folder)
    assert same_weights(weights, back)
    assert base_id == TINY.base_id
    assert sorted(p.name for p in folder.iterdir()) == [CONFIG_FILE, WEIGHTS_FILE]
    assert [p.name for p in folder.parent.iterdir()] == ["lora-1"]


def test_digest_tells_every_part_of_an_adapter_apart() -> None:
    weights = random_lora(SMALL, 0)
    reordered = LoRASpec(1, 2.0, SMALL.modules[::-1])
    assert content_digest(LoRAWeights(reordered, weights.a, weights.b)) == content_digest(weights)
    first = SMALL.names[0]
    others = [
        weights.scaled(1.0001),
        weights.to(torch.float16),
        LoRAWeights(LoRASpec(1, 3.0, SMALL.modules), weights.a, weights.b),
        LoRAWeights(LoRASpec(1, 2.0, SMALL.modules, use_rslora=True), weights.a, weights.b),
        LoRAWeights(SMALL, {**weights.a, first: -weights.a[first]}, weights.b),
    ]
    assert len({content_digest(w) for w in [weights, *others]}) == 1 + len(others)


def test_tensors_of_a_generator_are_stored_without_their_graph() -> None:
    weights = random_lora(SMALL, 0)
    grown = weights.map(lambda t: t.requires_grad_() * 1.0)
    assert to_bytes(grown) == SMALL_BYTES
    assert content_digest(grown) == content_digest(weights)


# PEFT reads our files, and we read PEFT's


@pytest.mark.parametrize("rslora", [False, True])
def test_what_peft_saves_is_read(rslora: bool, tiny_base_path: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_base_path, dtype=torch.float32)
    config = LoraConfig(
        r=3,
        lora_alpha=5,
        target_modules=list(TARGET_MODULES),
        task_type="CAUSAL_LM",
        init_lora_weights=False,
        use_rslora=rslora,
    )
    with_peft = get_peft_model(model, config)
    with_peft.save_pretrained(str(tmp_path))
    weights, base_id = load_peft(tmp_path)
    assert base_id == str(tiny_base_path)
    assert weights.spec == LoRASpec(3, 5.0, SPEC.modules, rslora)
    state = with_peft.state_dict()
    for name, a, b in weights.pairs():
        assert torch.equal(a, state[f"base_model.model.{name}.lora_A.default.weight"])
        assert torch.equal(b, state[f"base_model.model.{name}.lora_B.default.weight"])

    again = tmp_path / "again"
    save_peft(weights, again, base_id=base_id)
    assert load_file(again / WEIGHTS_FILE).keys() == load_file(tmp_path / WEIGHTS_FILE).keys()
    with safe_open(again / WEIGHTS_FILE, "pt") as ours, safe_open(tmp_path / WEIGHTS_FILE, "pt") as theirs:
        assert ours.metadata() == theirs.metadata()


# Damaged, hostile and wrong files


@given(st.integers(0, len(SMALL_BYTES) - 1))
def test_file_cut_at_any_byte_is_refused(length: int) -> None:
    with pytest.raises(AdapterFormatError, match=r"cut short|damaged|empty"):
        from_bytes(SMALL_BYTES[:length], SMALL_CONFIG)


@given(st.binary(min_size=1, max_size=50))
def test_file_with_something_behind_is_refused(more: bytes) -> None:
    with pytest.raises(AdapterFormatError, match="damaged"):
        from_bytes(SMALL_BYTES + more, SMALL_CONFIG)


@given(st.data())
def test_flipped_bytes_give_an_adapter_or_the_one_error(data: st.DataObject) -> None:
    raw = bytearray(SMALL_BYTES)
    header = 8 + int.from_bytes(raw[:8], "little")
    places = st.integers(0, header - 1) | st.integers(0, len(raw) - 1)
    for place in data.draw(st.lists(places, min_size=1, max_size=4)):
        raw[place] = data.draw(st.integers(0, 255))
    try:
        weights = from_bytes(bytes(raw), SMALL_CONFIG)
    except AdapterFormatError:
        return
    weights.require_finite()
    assert weights.spec.rank == SMALL.rank


@given(st.binary(max_size=300))
def test_any_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(AdapterFormatError):
        from_bytes(data, SMALL_CONFIG)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (struct.pack("<Q", 2**63) + b"{}", "cut short"),
        (struct.pack("<Q", peft_io.MAX_HEADER_BYTES + 1) + bytes(peft_io.MAX_HEADER_BYTES + 9), "header of"),
        (pickle.dumps({"a": 1}, protocol=4), "is a pickle or a zip"),
        (b"PK\x03\x04" + bytes(100), "is a pickle or a zip"),
        (with_header({}), "holds no numbers"),
        (with_header({"x": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 0]}}), "damaged"),
        (with_header({"x": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)), "damaged"),
        (with_header({"x": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, bytes(8)), "damaged"),
        (
            with_header({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
            "'x' is not a",
        ),
    ],
)
def test_hostile_files_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(AdapterFormatError, match=message):
        from_bytes(data, SMALL_CONFIG)


def test_too_many_bytes_are_refused_before_they_are_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peft_io, "MAX_WEIGHTS_BYTES", len(SMALL_BYTES) - 1)
    with pytest.raises(AdapterFormatError, match="more than"):
        from_bytes(SMALL_BYTES, SMALL_CONFIG)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(key("A")), "1 modules have a lora_A and 2 a lora_B"),
        (lambda t: (t.pop(key("A")), t.pop(key("B"))), "missing"),
        (lambda t: t.update({key("A"): t[key("A")].double()}), "float64"),
        (lambda t: t.update({key("A"): t[key("A")].to(torch.int8)}), "int8"),
        (lambda t: t.update({key("A"): t[key("A")].half()}), "several dtypes"),
        (lambda t: t.update({key("A"): t[key("A")][0]}), r"shape \(64,\)"),
        (lambda t: t.update({key("A"): t[key("A")].repeat(2, 1)}), "expected"),
        (lambda t: t.update({key("B"): t[key("B")].repeat(1, 2)}), "expected"),
        (lambda t: t.update({key("B"): torch.zeros(0, 1)}), r"shape \(0, 1\)"),
        (lambda t: t[key("A")].fill_(float("nan")), "NaN"),
        (lambda t: t[key("B")].view(-1)[-1:].fill_(float("-inf")), "NaN or infinite"),
        (lambda t: t.update({key("A", "../../../etc/passwd"): torch.zeros(1, 64)}), "passwd.*is not a LoRA"),
        (lambda t: t.update({"/etc/passwd": torch.zeros(1, 64)}), "is not a LoRA"),
        (lambda t: t.update({key("A", "lm_head"): torch.zeros(1, 64)}), "is not a LoRA"),
        (lambda t: t.update({key("A") + ".base_layer": torch.zeros(1, 64)}), "is not a LoRA"),
        (lambda t: t.update({"x" * 10_000: torch.zeros(1)}), "x' is not a LoRA"),
    ],
)
def test_wrong_tensors_are_refused(change: Callable[[dict[str, Tensor]], None], message: str) -> None:
    with pytest.raises(AdapterFormatError, match=message) as caught:
        from_bytes(rewritten(change), SMALL_CONFIG)
    assert len(str(caught.value)) < 600


def test_tensors_that_the_options_do_not_announce_are_refused() -> None:
    with pytest.raises(AdapterFormatError, match="extra"):
        from_bytes(SMALL_BYTES, {**SMALL_CONFIG, "target_modules": ["k_proj"]})
    with pytest.raises(AdapterFormatError, match="missing"):
        from_bytes(SMALL_BYTES, {**SMALL_CONFIG, "target_modules": ["k_proj", "v_proj", "lm_head"]})
    with pytest.raises(AdapterFormatError, match="missing"):
        from_bytes(SMALL_BYTES, {**SMALL_CONFIG, "layers_to_transform": [0, 1]})


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_adapter_that_is_not_finite_is_not_written(bad: float, tmp_path: Path) -> None:
    weights = random_lora(SMALL, 0)
    weights.b[SMALL.names[-1]][0, 0] = bad
    with pytest.raises(AdapterFormatError, match="NaN or infinite"):
        save_peft(weights, tmp_path / "adapter", base_id="b")
    with pytest.raises(AdapterFormatError, match="NaN or infinite"):
        to_bytes(weights)
    assert not list(tmp_path.iterdir())


def test_an_adapter_of_another_dtype_is_not_written() -> None:
    with pytest.raises(AdapterFormatError, match="float64"):
        to_bytes(random_lora(SMALL, 0).to(torch.float64))
