from __future__ import annotations

import logging
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load, load_file, save_file

from llgbm.base import Base, load_base, storage_of
from llgbm.config import lora_spec
from llgbm.decoding.decoder import generate
from llgbm.fitting.lora_steps import LoRASteps, StepSettings
from llgbm.linears import frozen_linear
from llgbm.linears.int8_file import VERSION, int8_path
from llgbm.packed.batch import Row
from llgbm.pretrained.tiny import build_tiny_base
from tests.fixtures import random_lora

IDS = torch.tensor([[1, 2, 3, 4]])


def kept(base_path: Path, folder: Path) -> Base:
    return load_base(base_path, storage="int8", int8_folder=folder)


def mapped(base_path: Path, folder: Path) -> Base:
    return load_base(base_path, storage="int8_mapped", int8_folder=folder)


def same(one: Base, other: Base) -> bool:
    weights = random_lora(lora_spec("tiny"), 0)
    prompts = [[5, 6, 7], [8, 9]]
    with torch.inference_mode():
        equal = torch.equal(one.model(IDS).logits, other.model(IDS).logits)
    return equal and generate(one, prompts, weights) == generate(other, prompts, weights)


@contextmanager
def float32_weights_unread() -> Iterator[None]:
    """Inside, a base cannot be loaded from its own weights."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("the float32 weights are read")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", refuse)
        yield


def test_the_file_is_written_once_and_gives_the_same_numbers(tiny_base_path: Path, tmp_path: Path) -> None:
    expected = load_base(tiny_base_path, storage="int8")
    first = kept(tiny_base_path, tmp_path)
    path = int8_path(tmp_path, first.revision)
    before = path.stat()
    with float32_weights_unread():
        second = kept(tiny_base_path, tmp_path)
    assert path.stat() == before
    assert path.name == f"{first.revision}-v{VERSION}.safetensors"
    assert [file.suffix for file in sorted(tmp_path.iterdir())] == [".lock", ".safetensors"]
    for base in (first, second):
        assert storage_of(base) == "int8"
        assert (base.spec, base.revision) == (expected.spec, expected.revision)
        assert base.model.generation_config.to_dict() == expected.model.generation_config.to_dict()  # type: ignore[union-attr,operator]
        assert not base.model.training
        assert same(base, expected)


def test_nothing_in_float32_is_left_but_embeddings_and_norms(tiny_base_path: Path, tmp_path: Path) -> None:
    kept(tiny_base_path, tmp_path)
    base = kept(tiny_base_path, tmp_path)
    names = {name.rpartition(".")[0].rpartition(".")[2] for name, _ in base.model.named_parameters()}
    assert names == {"embed_tokens", "input_layernorm", "post_attention_layernorm", "norm"}
    assert not any(p.requires_grad for p in base.model.parameters())
    mapped = [
        line
        for line in Path("/proc/self/maps").read_text().splitlines()
        if line.endswith(f"{tmp_path}/{int8_path(tmp_path, base.revision).name}")
    ]
    assert len(mapped) == 1  # of the embeddings; the rows' own ended with the load


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def fill_with_zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def lose_a_tensor(path: Path) -> None:
    tensors = load_file(path)
    tensors.popitem()
    save_file({name: t.clone() for name, t in tensors.items()}, path, {"format": "llgbm-int8", "version": str(VERSION)})


def claim_another_version(path: Path) -> None:
    save_file({name: t.clone() for name, t in load_file(path).items()}, path, {"format": "llgbm-int8", "version": "0"})


@pytest.mark.parametrize("damage", [cut, fill_with_zeros, lose_a_tensor, claim_another_version])
def test_a_damaged_file_is_written_anew(
    tiny_base_path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], None]
) -> None:
    expected = kept(tiny_base_path, tmp_path)
    path = int8_path(tmp_path, expected.revision)
    whole = path.read_bytes()
    damage(path)
    assert path.read_bytes() != whole
    with caplog.at_level(logging.WARNING):
        again = kept(tiny_base_path, tmp_path)
    assert [record.name for record in caplog.records] == ["llgbm.base"]
    assert str(path) in caplog.text
    assert load_file(path).keys() == load(whole).keys()
    assert same(again, load_base(tiny_base_path, storage="int8"))
    with float32_weights_unread():
        kept(tiny_base_path, tmp_path)


def test_a_half_written_file_is_never_read(tiny_base_path: Path, tmp_path: Path) -> None:
    revision = load_base(tiny_base_path).revision
    int8_path(tmp_path, revision).with_suffix(".tmp").write_bytes(b"half")  # of a process that was killed
    assert same(kept(tiny_base_path, tmp_path), load_base(tiny_base_path, storage="int8"))
    assert not list(tmp_path.glob("*.tmp"))


def test_another_revision_has_another_file(tiny_base_path: Path, tmp_path: Path) -> None:
    other_path = build_tiny_base(tmp_path / "other", seed=1)
    folder = tmp_path / "int8"
    one, other = kept(tiny_base_path, folder), kept(other_path, folder)
    assert len(list(folder.glob("*.safetensors"))) == 2
    assert not same(one, other)
    with float32_weights_unread():
        assert same(kept(other_path, folder), other)


@pytest.mark.parametrize("cause", ["disk full", "no folder"])
def test_a_file_that_cannot_be_written_is_done_without(
    tiny_base_path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, cause: str
) -> None:
    folder = tmp_path / "int8"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if cause == "disk full":
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    else:
        folder.write_text("a file in its place")
    try:
        with caplog.at_level(logging.WARNING):
            base = kept(tiny_base_path, folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    (record,) = caplog.records
    assert "are not kept in" in record.getMessage()
    assert not list(tmp_path.rglob("*.safetensors")) + list(tmp_path.rglob("*.tmp"))
    assert same(base, load_base(tiny_base_path, storage="int8"))


def test_other_storages_write_nothing(tiny_base_path: Path, tmp_path: Path) -> None:
    load_base(tiny_base_path, storage="bfloat16", int8_folder=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_base_for_training_is_mapped_from_the_file_of_the_decoding_one(tiny_base_path: Path, tmp_path: Path) -> None:
    decoding = kept(tiny_base_path, tmp_path)
    with float32_weights_unread():
        base = mapped(tiny_base_path, tmp_path)
    assert storage_of(base) == "int8_mapped"
    assert (base.spec, base.revision) == (decoding.spec, decoding.revision)
    assert not any(p.requires_grad for p in base.model.parameters())
    name = int8_path(tmp_path, base.revision).name
    lines = [line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(name)]
    places = [[int(end, 16) for end in line.split()[0].split("-")] for line in lines]
    linear: Any = base.model.get_submodule("model.layers.1.mlp.down_proj")
    assert any(first <= linear._rows.data_ptr() < last for first, last in places)


@pytest.mark.parametrize("multiplies", [True, False])
def test_a_mapped_base_answers_and_trains_as_one_that_was_quantised_in_memory(
    tiny_base_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, multiplies: bool
) -> None:
    monkeypatch.setattr(frozen_linear, "_multiplies_bfloat16", lambda: multiplies)
    base, in_memory = mapped(tiny_base_path, tmp_path), load_base(tiny_base_path, storage="int8_mapped")
    exact = load_base(tiny_base_path)
    rows = [[Row([5, 6, 7, 8], [9, 10]), Row([5, 6, 11], [12])]]
    settings = StepSettings(learning_rate=1e-3, schedule_steps=3)
    start = random_lora(lora_spec("tiny"), 0)
    losses = {}
    for name, one in (("mapped", base), ("in memory", in_memory), ("exact", exact)):
        steps = LoRASteps(one, start, settings)
        losses[name] = [steps.step(rows) for _ in range(3)]
    assert losses["mapped"] == pytest.approx(losses["in memory"], rel=0.002 if multiplies else 1e-6)
    assert losses["mapped"] == pytest.approx(losses["exact"], rel=0.02)
    assert losses["mapped"][-1] < losses["mapped"][0]
    prompts = [[5, 6, 7], [8, 9]]
    assert generate(base, prompts, start) == generate(in_memory, prompts, start)


def test_a_base_without_a_file_is_mapped_from_a_new_one(tiny_base_path: Path, tmp_path: Path) -> None:
    base = mapped(tiny_base_path, tmp_path)
    assert int8_path(tmp_path, base.revision).is_file()
    with float32_weights_unread():
        again = mapped(tiny_base_path, tmp_path)
        kept(tiny_base_path, tmp_path)
    with torch.inference_mode():
        assert torch.equal(base.model(IDS).logits, again.model(IDS).logits)


def test_a_damaged_file_is_not_mapped(tiny_base_path: Path, tmp_path: Path) -> None:
    expected = mapped(tiny_base_path, tmp_path)
    with torch.inference_mode():
        logits = expected.model(IDS).logits
    path = int8_path(tmp_path, expected.revision)
    content = path.read_bytes()
    path.unlink()  # the mapping keeps the old content
    path.write_bytes(content[:-100])
    with torch.inference_mode():
        assert torch.equal(mapped(tiny_base_path, tmp_path).model(IDS).logits, logits)
