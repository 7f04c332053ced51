import json
import shutil
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from llgbm.base import Base, load_bare_base, load_base
from llgbm.config import model_spec
from llgbm.errors import ConfigError, PretrainedNotFoundError
from llgbm.linears.frozen_linear import BFloat16Linear, Int8Linear, Storage
from llgbm.pretrained.tiny import build_tiny_base

IDS = torch.tensor([[1, 2, 3, 4]])


@pytest.fixture
def folder(tiny_base_path: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_base_path, tmp_path / "base")


def edit_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def test_a_base_is_frozen_and_does_not_train(tiny_base: Base) -> None:
    assert not tiny_base.model.training
    assert not any(p.requires_grad for p in tiny_base.model.parameters())
    assert {p.dtype for p in tiny_base.model.parameters()} == {torch.float32}
    assert tiny_base.spec == model_spec("tiny")
    assert tiny_base.tokenizer.chat_template


def test_the_same_folder_gives_the_same_numbers_and_revision(tiny_base: Base, tiny_base_path: Path) -> None:
    again = load_base(str(tiny_base_path))
    assert again.revision == tiny_base.revision
    assert torch.equal(again.model(IDS).logits, tiny_base.model(IDS).logits)


def test_other_weights_have_another_revision(tiny_base: Base, tmp_path: Path) -> None:
    assert load_base(build_tiny_base(tmp_path, seed=1)).revision != tiny_base.revision


@pytest.mark.parametrize(("storage", "kind"), [("bfloat16", BFloat16Linear), ("int8", Int8Linear)])
def test_the_storage_is_that_of_every_linear(tiny_base: Base, tiny_base_path: Path, storage: str, kind: type) -> None:
    base = load_base(tiny_base_path, storage=cast(Storage, storage))
    linears = [m for m in base.model.modules() if hasattr(m, "in_features")]
    assert len(linears) == 2 * 7 + 1
    assert all(isinstance(m, kind) for m in linears)
    with torch.inference_mode():
        plain, stored = tiny_base.model(IDS).logits, base.model(IDS).logits
    assert stored.dtype == torch.float32
    assert 0 < (stored - plain).norm() < 0.05 * plain.norm()


def test_a_bare_base_is_the_base_but_for_its_model(tiny_base: Base, folder: Path) -> None:
    bare = load_bare_base(folder)
    assert (bare.spec, bare.revision, bare.max_positions) == (tiny_base.spec, tiny_base.revision, 4096)
    (folder / "model.safetensors").unlink()
    bare = load_bare_base(folder)
    assert bare.spec == tiny_base.spec
    assert bare.tokenizer("a text")["input_ids"] == tiny_base.tokenizer("a text")["input_ids"]
    edit_config(folder, model_type="gpt2")
    with pytest.raises(PretrainedNotFoundError, match=r"works with Qwen2\.5"):
        load_bare_base(folder)


def test_an_unknown_storage_is_refused(tiny_base_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown storage 'float8'"):
        load_base(tiny_base_path, storage=cast(Any, "float8"))


def test_int8_is_refused_on_a_gpu(tiny_base_path: Path) -> None:
    with pytest.raises(ConfigError, match="int8 is for CPUs"):
        load_base(tiny_base_path, storage="int8", device="cuda")


def test_another_architecture_is_refused(folder: Path) -> None:
    edit_config(folder, model_type="llama")
    with pytest.raises(PretrainedNotFoundError, match=r"holds a llama model; LLGBM works with Qwen2.5"):
        load_base(folder)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PretrainedNotFoundError, match="There is no folder"):
        load_base(tmp_path / "nowhere")


def test_a_hub_id_is_the_base_id_even_where_a_preset_has_the_shape(
    tiny_base_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two models may share a shape; an adapter for one must not be taken for an adapter for the other."""
    monkeypatch.setattr("llgbm.base.resolve_pretrained", lambda name: tiny_base_path)
    spec = load_base("someone/else").spec
    assert (spec.name, spec.base_id) == ("tiny", "someone/else")
    assert load_base(model_spec("tiny").base_id).spec == model_spec("tiny")


def test_a_folder_of_an_unknown_shape_goes_by_its_own_name(folder: Path) -> None:
    config = Qwen2Config.from_pretrained(folder, num_hidden_layers=1, layer_types=["full_attention"])
    Qwen2ForCausalLM(config).save_pretrained(folder)
    spec = load_base(folder).spec
    assert (spec.name, spec.base_id, spec.num_layers) == (str(folder), str(folder), 1)


def test_no_progress_is_drawn(tiny_base_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load_base(tiny_base_path)
    assert capfd.readouterr() == ("", "")


def test_the_tokenizer_is_that_of_the_class_that_the_folder_names(tiny_base: Base, folder: Path) -> None:
    named = AutoTokenizer.from_pretrained(folder)
    texts = [
        "a text",
        "  two\n\nlines\t ",
        "caf\N{LATIN SMALL LETTER E WITH ACUTE} \N{ROCKET}",
        "<|im_start|>user\nhi",
        "",
    ]
    assert [named(text)["input_ids"] for text in texts] == [tiny_base.tokenizer(text)["input_ids"] for text in texts]
    assert named.added_tokens_decoder == tiny_base.tokenizer.added_tokens_decoder
    assert (named.eos_token, named.pad_token) == (tiny_base.tokenizer.eos_token, tiny_base.tokenizer.pad_token)
    # the older pair of files, which do not name the special tokens
    pair = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "vocab.json").write_text(json.dumps(pair["vocab"]))
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in pair["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    (folder / "tokenizer.json").unlink()
    of_pair = load_base(folder).tokenizer
    assert [of_pair(text)["input_ids"] for text in texts[:3]] == [named(text)["input_ids"] for text in texts[:3]]
