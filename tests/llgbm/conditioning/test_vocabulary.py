import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer

from llgbm.base import Base
from llgbm.conditioning.vocabulary import BaseVocabulary
from llgbm.errors import PretrainedNotFoundError
from llgbm.pretrained.find import pretrained_revision

TEXTS = ["billing", " billing", "Größe 7 €", "", "a\n b", "say <|im_end|> now"]
IDS = [5, 0, 100, 5]
HEAD, EMBEDDINGS, WEIGHTS = "lm_head.weight", "model.embed_tokens.weight", "model.safetensors"


@pytest.fixture
def folder(tiny_base_path: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_base_path, tmp_path / "base")


def change(folder: Path, tensors: dict[str, Tensor]) -> None:
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def test_tokens_are_those_of_transformers_without_special_tokens(tiny_base_path: Path) -> None:
    tokenizer, vocabulary = AutoTokenizer.from_pretrained(tiny_base_path), BaseVocabulary(tiny_base_path)
    for text in TEXTS:
        assert vocabulary.encode(text) == tokenizer.encode(text, add_special_tokens=False)


def test_readers_give_the_logits_of_the_normalised_state(tiny_base: Base, tiny_base_path: Path) -> None:
    model, vocabulary = tiny_base.model, BaseVocabulary(tiny_base_path)
    kept: list[Tensor] = []
    hook = model.get_submodule("model.norm").register_forward_pre_hook(lambda _, given: kept.append(given[0]))
    try:
        with torch.no_grad():
            logits = model(torch.tensor([vocabulary.encode("Say billing or delivery.")])).logits[0]
    finally:
        hook.remove()
    state = kept[0][0]  # (tokens, hidden)
    config: Any = model.config
    normalised = state / (state.square().mean(-1, keepdim=True) + config.rms_norm_eps).sqrt()
    torch.testing.assert_close(normalised @ vocabulary.all_readers().T, logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(normalised @ vocabulary.readers(IDS).T, logits[:, IDS], atol=1e-4, rtol=1e-4)


def test_a_base_with_an_output_layer_of_its_own_is_read_by_it(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    head = torch.randn(tensors[EMBEDDINGS].shape, generator=torch.Generator().manual_seed(0))
    change(folder, {**tensors, HEAD: head})
    torch.testing.assert_close(BaseVocabulary(folder).readers(IDS), head[IDS] * tensors["model.norm.weight"])


def test_a_base_in_several_files_is_read_by_their_index(folder: Path) -> None:
    expected, tensors = BaseVocabulary(folder).all_readers(), load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    files = {name: f"model-{1 + (name == 'model.norm.weight')}-of-2.safetensors" for name in tensors}
    for file in set(files.values()):
        save_file({name: tensors[name] for name in tensors if files[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    assert torch.equal(BaseVocabulary(folder).all_readers(), expected)
    assert torch.equal(BaseVocabulary(folder).readers(IDS), expected[IDS])


def test_readers_of_a_base_in_fewer_bits_are_float32(folder: Path) -> None:
    expected = BaseVocabulary(folder).readers(IDS)
    change(folder, {name: tensor.bfloat16() for name, tensor in load_file(folder / WEIGHTS).items()})
    readers = BaseVocabulary(folder).readers(IDS)
    assert readers.dtype == torch.float32
    torch.testing.assert_close(readers, expected, atol=0.02, rtol=0.02)


def test_the_revision_is_that_of_the_folder(tiny_base_path: Path) -> None:
    assert BaseVocabulary(tiny_base_path).revision == pretrained_revision(tiny_base_path)


def test_a_folder_without_an_output_layer_is_refused(folder: Path) -> None:
    change(folder, {"model.norm.weight": load_file(folder / WEIGHTS)["model.norm.weight"]})
    with pytest.raises(PretrainedNotFoundError, match=r"has no lm_head.weight and no model.embed_tokens.weight"):
        BaseVocabulary(folder).readers(IDS)


def test_a_folder_without_weights_is_refused(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    with pytest.raises(PretrainedNotFoundError, match=r"has no model.safetensors"):
        BaseVocabulary(folder).readers(IDS)
