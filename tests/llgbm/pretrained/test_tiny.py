import unicodedata
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer

from llgbm.base import Base, load_base
from llgbm.config import TARGET_MODULES, model_spec
from llgbm.pretrained.byte_level import byte_vocabulary
from llgbm.pretrained.tiny import build_tiny_base, build_tiny_encoder

SENTENCES = [
    "Translate the English word to French.",
    "Classify the sentiment of the review.",
    "Reverse the letters of the word.",
    "Wörter mit ähnlicher Bedeutung \N{SNOWMAN}",
]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_base_has_the_shape_of_its_preset(tiny_base: Base) -> None:
    assert tiny_base.spec == model_spec("tiny")
    linears = dict(tiny_base.model.named_modules())
    for layer in range(tiny_base.spec.num_layers):
        for target in TARGET_MODULES:
            shape = tiny_base.spec.module_shape(layer, target)
            assert linears[shape.name].weight.shape == (shape.out_features, shape.in_features)
    config: Any = tiny_base.model.config
    assert config.tie_word_embeddings
    assert all(p.dtype == torch.float32 for p in tiny_base.model.parameters())


def test_base_is_the_same_for_the_same_seed_only(tmp_path: Path, tiny_base_path: Path) -> None:
    same, other = build_tiny_base(tmp_path / "same"), build_tiny_base(tmp_path / "other", seed=1)
    assert contents(same) == contents(tiny_base_path)
    assert contents(other)["model.safetensors"] != contents(same)["model.safetensors"]


def test_building_leaves_the_global_generator_of_a_seeded_program_repeatable(tmp_path: Path) -> None:
    draws = []
    for name in ("a", "b"):
        torch.manual_seed(7)
        build_tiny_base(tmp_path / name)
        draws.append(torch.rand(4))
    assert torch.equal(*draws)


@given(st.text())
def test_tokenizer_keeps_every_text_up_to_its_normal_form(tiny_base: Base, text: str) -> None:
    for special in tiny_base.tokenizer.all_special_tokens:
        text = text.replace(special, "")
    text = unicodedata.normalize("NFC", text)
    ids = tiny_base.tokenizer(text).input_ids
    assert ids == list(text.encode("utf-8"))
    assert tiny_base.tokenizer.decode(ids) == text


def test_tokenizer_and_model_agree_on_the_vocabulary(tiny_base: Base) -> None:
    model: Any = tiny_base.model
    assert len(tiny_base.tokenizer) == model.config.vocab_size
    assert tiny_base.tokenizer.eos_token == "<|im_end|>"
    stops = [tiny_base.tokenizer.convert_tokens_to_ids(t) for t in ("<|im_end|>", "<|endoftext|>")]
    assert model.generation_config.eos_token_id == stops


@pytest.mark.parametrize("system", [None, "Be brief."])
def test_chat_template_is_the_form_of_qwen(tiny_base: Base, system: str | None) -> None:
    messages = [] if system is None else [{"role": "system", "content": system}]
    messages += [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "three"},
    ]
    text = tiny_base.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    first = system or "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
    assert text == (
        f"<|im_start|>system\n{first}<|im_end|>\n"
        "<|im_start|>user\none<|im_end|>\n<|im_start|>assistant\ntwo<|im_end|>\n"
        "<|im_start|>user\nthree<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.real
def test_chat_template_agrees_with_the_real_one(tiny_base: Base, real_base: Base) -> None:
    messages = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]
    for conversation in (messages[:1], messages, [{"role": "system", "content": "s"}, *messages]):
        for prompt in (False, True):
            tiny, real = (
                b.tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=prompt)
                for b in (tiny_base, real_base)
            )
            assert tiny == real


def test_greedy_answers_differ_between_prompts(tiny_base: Base) -> None:
    answers = set()
    for prompt in ("hello", "what is this", "zzz"):
        ids = torch.tensor([tiny_base.tokenizer(prompt).input_ids])
        logits = tiny_base.model(ids).logits[0, -1]
        answers.add(int(logits.argmax()))
    assert len(answers) > 1


def test_encoder_gives_384_numbers_that_tell_texts_apart(tiny_encoder_path: Path) -> None:
    encoder = SentenceTransformer(str(tiny_encoder_path), device="cpu")
    vectors = encoder.encode(SENTENCES, convert_to_tensor=True)
    assert vectors.shape == (len(SENTENCES), 384)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(SENTENCES)))
    similarity = vectors @ vectors.T
    assert similarity.fill_diagonal_(0).max() < 0.9


def test_encoder_is_the_same_for_the_same_seed_only(tmp_path: Path, tiny_encoder_path: Path) -> None:
    same, other = build_tiny_encoder(tmp_path / "same"), build_tiny_encoder(tmp_path / "other", seed=1)
    assert contents(same) == contents(tiny_encoder_path)
    assert contents(other)["model.safetensors"] != contents(same)["model.safetensors"]


def test_base_loads_with_every_weight_in_place(tiny_base_path: Path) -> None:
    stored = load_file(tiny_base_path / "model.safetensors")
    loaded = dict(load_base(tiny_base_path).model.named_parameters())
    assert stored.keys() == loaded.keys()
    assert all(torch.equal(stored[name], loaded[name]) for name in stored)


def test_every_byte_has_one_stand_in() -> None:
    table = byte_vocabulary()
    assert list(table.values()) == list(range(256))
    assert all(len(c) == 1 and c.isprintable() and not c.isspace() for c in table)
