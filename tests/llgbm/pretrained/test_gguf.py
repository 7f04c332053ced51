import unicodedata
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize, quantize
from safetensors.numpy import load_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from llgbm.pretrained.folder import folder_problem
from llgbm.pretrained.gguf import GGUFConversionError, convert_gguf
from tests.llgbm.pretrained import tiny_gguf as tiny


def converted(tmp_path: Path, tensors: dict[str, Any], *, convert: dict[str, Any] | None = None, **write: Any) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    tiny.write_tiny_gguf(tmp_path / "model.gguf", tensors, **write)
    convert_gguf(tmp_path / "model.gguf", folder, **(convert or {}))
    return folder


@pytest.mark.parametrize(("seed", "layers"), [(0, 1), (1, 2), (2, 11)])
def test_float32_tensors_come_through_unchanged(tmp_path: Path, seed: int, layers: int) -> None:
    tensors = tiny.tiny_tensors(seed, layers)
    weights = load_file(converted(tmp_path, tensors, layers=layers) / "model.safetensors")

    def taken(hugging_face: str, gguf_name: str) -> None:
        np.testing.assert_array_equal(weights.pop(hugging_face), tensors[gguf_name])

    taken("model.embed_tokens.weight", "output.weight")
    taken("model.norm.weight", "output_norm.weight")
    for i in range(layers):
        taken(f"model.layers.{i}.input_layernorm.weight", f"blk.{i}.attn_norm.weight")
        taken(f"model.layers.{i}.post_attention_layernorm.weight", f"blk.{i}.ffn_norm.weight")
        for short in "qkv":
            for kind in ("weight", "bias"):
                taken(f"model.layers.{i}.self_attn.{short}_proj.{kind}", f"blk.{i}.attn_{short}.{kind}")
        taken(f"model.layers.{i}.self_attn.o_proj.weight", f"blk.{i}.attn_output.weight")
        for short in ("gate", "up", "down"):
            taken(f"model.layers.{i}.mlp.{short}_proj.weight", f"blk.{i}.ffn_{short}.weight")
    assert not weights


def test_transformers_loads_the_folder(tmp_path: Path) -> None:
    tensors = tiny.tiny_tensors()
    folder = converted(tmp_path, tensors)
    assert folder_problem(folder) is None
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    model, info = loaded

    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    assert model.dtype == torch.float32
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    config = model.config
    assert config.model_type == "qwen2"
    assert config.num_hidden_layers == tiny.LAYERS
    assert config.num_attention_heads == tiny.HEADS
    assert config.num_key_value_heads == tiny.KV_HEADS
    assert config.max_position_embeddings == tiny.CONTEXT
    assert config.vocab_size == tiny.VOCABULARY
    assert config.rms_norm_eps == 1e-6
    assert config.rope_parameters["rope_theta"] == 1_000_000.0
    assert model.generation_config.eos_token_id == [tiny.IM_END, tiny.ENDOFTEXT]
    assert model.generation_config.pad_token_id == tiny.ENDOFTEXT
    assert not model.generation_config.do_sample


def test_quantised_tensors_are_dequantised_and_the_better_embedding_is_kept(tmp_path: Path) -> None:
    tensors = tiny.tiny_tensors()
    kinds = {
        "output.weight": gguf.GGMLQuantizationType.Q8_0,
        "token_embd.weight": gguf.GGMLQuantizationType.Q4_0,
        "blk.1.ffn_down.weight": gguf.GGMLQuantizationType.Q5_0,
    }
    weights = load_file(converted(tmp_path, tensors, quantised=kinds) / "model.safetensors")

    def through(name: str) -> Any:
        return dequantize(quantize(tensors[name], kinds[name]), kinds[name])

    np.testing.assert_array_equal(weights["model.embed_tokens.weight"], through("output.weight"))
    np.testing.assert_array_equal(weights["model.layers.1.mlp.down_proj.weight"], through("blk.1.ffn_down.weight"))
    assert "lm_head.weight" not in weights


def test_a_single_embedding_serves_a_tied_model(tmp_path: Path) -> None:
    tensors = tiny.tiny_tensors()
    del tensors["output.weight"]
    weights = load_file(converted(tmp_path, tensors) / "model.safetensors")
    np.testing.assert_array_equal(weights["model.embed_tokens.weight"], tensors["token_embd.weight"])


def test_float16_storage_rounds_once_and_loads_as_float16(tmp_path: Path) -> None:
    tensors = tiny.tiny_tensors()
    folder = converted(tmp_path, tensors, convert={"dtype": "float16"})
    weights = load_file(folder / "model.safetensors")
    np.testing.assert_array_equal(weights["model.embed_tokens.weight"], tensors["output.weight"].astype(np.float16))
    assert AutoModelForCausalLM.from_pretrained(folder).dtype == torch.float16


def test_progress_ends_at_the_bytes_of_all_tensors(tmp_path: Path) -> None:
    reports: list[tuple[int, int]] = []
    tensors = tiny.tiny_tensors()
    converted(tmp_path, tensors, convert={"progress": lambda done, total: reports.append((done, total))})
    size = sum(t.nbytes for name, t in tensors.items() if name != "token_embd.weight")
    assert reports[-1] == (size, size)
    assert reports == sorted(reports)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "llama"}, "architecture 'llama'"),
        ({"layers": 3}, r"missing .*model\.layers\.2\."),
        ({"without_eos": True}, "no metadata field 'tokenizer.ggml.eos_token_id'"),
        ({"rope_scaling": True}, "rope scaling"),
    ],
)
def test_a_file_that_is_something_else_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(GGUFConversionError, match=message):
        converted(tmp_path, tiny.tiny_tensors(), **change)


def test_missing_unknown_and_superfluous_tensors_are_refused(tmp_path: Path) -> None:
    for number, (name, message) in enumerate(
        [
            ("blk.0.attn_q.bias", "missing"),
            ("blk.0.attn_q_norm.weight", "no place"),
            ("blk.2.attn_q.bias", "left over"),
        ]
    ):
        tensors = tiny.tiny_tensors()
        if name in tensors:
            del tensors[name]
        else:
            tensors[name] = np.ones(tiny.HIDDEN, dtype=np.float32)
        place = tmp_path / str(number)
        place.mkdir()
        with pytest.raises(GGUFConversionError, match=message):
            converted(place, tensors)


def test_the_tokenizer_knows_special_tokens_and_chat(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(converted(tmp_path, tiny.tiny_tensors()))
    assert tokenizer.encode("hello<|im_start|>") == [tiny.WORDS.index("hello"), tiny.IM_START]
    assert tokenizer.eos_token_id == tiny.IM_END
    assert tokenizer.pad_token_id == tiny.ENDOFTEXT
    assert tokenizer.model_max_length == tiny.CONTEXT
    assert len(tokenizer) == len(tiny.WORDS) + len(tiny.SPECIAL)  # no names for the padding rows
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hello"}], add_generation_prompt=True, tokenize=False
    )
    assert chat == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("text", ["hello", "café 12 34", "日本 — été\n\n  x", "\u0635\u0628\u0627\u062d \U0001f600"])
def test_the_tokenizer_gives_back_the_text_in_nfc(tmp_path: Path, text: str) -> None:
    folder = converted(tmp_path, tiny.tiny_tensors())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    composed, decomposed = unicodedata.normalize("NFC", text), unicodedata.normalize("NFD", text)
    assert tokenizer.encode(decomposed) == tokenizer.encode(composed)
    assert tokenizer.decode(tokenizer.encode(decomposed)) == composed
    # in the file itself, for programs that read it without transformers
    assert Tokenizer.from_file(str(folder / "tokenizer.json")).encode(decomposed).ids == tokenizer.encode(composed)
