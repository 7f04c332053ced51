"""Turns one GGUF file of the Qwen2 family into a Hugging Face model folder.

Contract: `convert_gguf` reads a GGUF of architecture ``qwen2`` and writes ``config.json``,
``generation_config.json``, ``model.safetensors`` and the tokenizer files, chat template included, into a
existing folder. The `gguf` package dequantises tensors, which are written one at a time, so memory holds one tensor and
not the model. Tensors and places in the model must match one to one; anything else is an error. The caller has checked
the file's hash; this module neither downloads nor moves anything.

Nothing is permuted: Qwen2's rotary embedding pairs the two halves of a head in both formats.
"""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, ReaderTensor
from gguf.quants import dequantize

from llgbm.errors import LLGBMError
from llgbm.pretrained.pinned_wheels import StorageDtype

_STORAGE: dict[StorageDtype, tuple[str, type[np.floating[Any]]]] = {
    "float32": ("F32", np.float32),
    "float16": ("F16", np.float16),
}

_EMBEDDING = "model.embed_tokens.weight"
_HEAD = "lm_head.weight"
_MODEL_NAMES = {
    "token_embd.weight": _EMBEDDING,
    "output.weight": _HEAD,
    "output_norm.weight": "model.norm.weight",
}
_LAYER_NAMES = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_q.bias": "self_attn.q_proj.bias",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_k.bias": "self_attn.k_proj.bias",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_v.bias": "self_attn.v_proj.bias",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}
_LAYER_TENSOR = re.compile(r"blk\.(\d+)\.(.+)")
_PADDING_TOKEN = re.compile(r"\[PAD\d+\]")


class GGUFConversionError(LLGBMError):
    """The GGUF file cannot be converted to a Qwen2 folder."""


def convert_gguf(
    gguf_path: Path,
    folder: Path,
    *,
    dtype: StorageDtype = "float32",
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write the model in `gguf_path` to `folder` in Hugging Face layout.

    The model shares its input embedding and its output head, as Qwen2.5 models up to 3B do. Its GGUF file may hold the
    matrix twice, at two precisions: the head's copy is the better one, and is stored once, as the embedding.

    Args:
        gguf_path: a GGUF file, architecture ``qwen2``, any quantisation that `gguf` can dequantise.
        folder: an existing folder; files of the same names are overwritten.
        dtype: of every stored tensor. Dequantisation is always in float32.
        progress: called with (bytes written, bytes in all) of ``model.safetensors``.

    Raises:
        GGUFConversionError: wrong architecture, a missing metadata field, or tensors missing or left over.
    """
    reader = GGUFReader(str(gguf_path))
    config = _model_config(reader, dtype=dtype)
    tensors = _named_tensors(reader, layers=config["num_hidden_layers"])
    config["vocab_size"] = int(tensors[_EMBEDDING].shape[1])  # GGUF writes shapes innermost first

    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", _generation_config(config))
    _write_safetensors(folder / "model.safetensors", tensors, dtype, progress)
    _write_tokenizer(gguf_path, folder, max_length=config["max_position_embeddings"])


def _field(reader: GGUFReader, key: str) -> Any:
    field = reader.get_field(key)
    if field is None:
        raise GGUFConversionError(f"the GGUF file has no metadata field {key!r}; it needs one to become a Qwen2 model")
    return field.contents()


def _model_config(reader: GGUFReader, *, dtype: StorageDtype) -> dict[str, Any]:
    """The model's config.json, with the keys of Qwen's own repositories, which old and new readers know."""
    architecture = _field(reader, "general.architecture")
    if architecture != "qwen2":
        raise GGUFConversionError(f"the GGUF file holds architecture {architecture!r}; only 'qwen2' can be converted")
    if reader.get_field("qwen2.rope.scaling.type") is not None:
        raise GGUFConversionError("the GGUF file asks for rope scaling, which the conversion does not carry over")
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": _field(reader, "qwen2.embedding_length"),
        "intermediate_size": _field(reader, "qwen2.feed_forward_length"),
        "num_hidden_layers": _field(reader, "qwen2.block_count"),
        "num_attention_heads": _field(reader, "qwen2.attention.head_count"),
        "num_key_value_heads": _field(reader, "qwen2.attention.head_count_kv"),
        "max_position_embeddings": _field(reader, "qwen2.context_length"),
        # the file has float32 values; the intended number is the shortest decimal that rounds to it, such as 1e-06
        "rms_norm_eps": float(str(np.float32(_field(reader, "qwen2.attention.layer_norm_rms_epsilon")))),
        "rope_theta": float(str(np.float32(_field(reader, "qwen2.rope.freq_base")))),
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
        "use_sliding_window": False,
        "tie_word_embeddings": True,
        "bos_token_id": _field(reader, "tokenizer.ggml.bos_token_id"),
        "eos_token_id": _field(reader, "tokenizer.ggml.eos_token_id"),
        "pad_token_id": _field(reader, "tokenizer.ggml.padding_token_id"),
        "torch_dtype": dtype,
    }


def _generation_config(config: dict[str, Any]) -> dict[str, Any]:
    """Stops at the end of a turn or of the text. Sampling is left to the caller."""
    eos, pad = config["eos_token_id"], config["pad_token_id"]
    return {
        "bos_token_id": config["bos_token_id"],
        "eos_token_id": [eos] if eos == pad else [eos, pad],
        "pad_token_id": pad,
    }


def _named_tensors(reader: GGUFReader, *, layers: int) -> dict[str, ReaderTensor]:
    """The file's tensors by their Hugging Face names, in the order of the model."""
    found: dict[str, ReaderTensor] = {}
    for tensor in reader.tensors:
        name = _hugging_face_name(tensor.name)
        if name is None:
            raise GGUFConversionError(f"the GGUF file has a tensor {tensor.name!r} that has no place in a Qwen2 model")
        found[name] = tensor
    if _HEAD in found:
        found[_EMBEDDING] = found.pop(_HEAD)

    wanted = [_EMBEDDING, *(f"model.layers.{i}.{n}" for i in range(layers) for n in _LAYER_NAMES.values())]
    wanted.append("model.norm.weight")
    missing, extra = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    if missing or extra:
        raise GGUFConversionError(
            f"the GGUF file does not hold a {layers} layer Qwen2 model: missing {missing[:3] or 'nothing'} "
            f"({len(missing)} in all), left over {extra[:3] or 'nothing'} ({len(extra)} in all)"
        )
    return {name: found[name] for name in wanted}


def _hugging_face_name(gguf_name: str) -> str | None:
    match = _LAYER_TENSOR.fullmatch(gguf_name)
    if match is None:
        return _MODEL_NAMES.get(gguf_name)
    inside = _LAYER_NAMES.get(match[2])
    return None if inside is None else f"model.layers.{match[1]}.{inside}"


def _write_safetensors(
    path: Path,
    tensors: dict[str, ReaderTensor],
    dtype: StorageDtype,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Write the safetensors format directly, since its library needs all tensors in memory at once.

    The format: the header's length in 8 bytes (little endian), a JSON header with byte offsets, and the values.
    """
    label, numpy_dtype = _STORAGE[dtype]
    little_endian = np.dtype(numpy_dtype).newbyteorder("<")
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    total = 0
    for name, tensor in tensors.items():
        end = total + int(tensor.n_elements) * little_endian.itemsize
        shape = [int(n) for n in reversed(tensor.shape)]  # GGUF writes shapes innermost first
        header[name] = {"dtype": label, "shape": shape, "data_offsets": [total, end]}
        total = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)  # the format aligns the data to 8 bytes

    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little"))
        file.write(encoded)
        for name, tensor in tensors.items():
            values = dequantize(tensor.data, tensor.tensor_type)
            file.write(np.ascontiguousarray(values, dtype=little_endian).data)
            if progress is not None:
                progress(header[name]["data_offsets"][1], total)
        file.flush()
        os.fsync(file.fileno())


def _write_tokenizer(gguf_path: Path, folder: Path, *, max_length: int) -> None:
    """Save the tokenizer that transformers reads from the GGUF, corrected to the one that Qwen publishes."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(gguf_path.parent), gguf_file=gguf_path.name)
    tokenizer.save_pretrained(str(folder))

    # GGUF loses two things. Qwen normalises text to NFC. And it has no tokens for the padding rows of the embedding
    # matrix, for which GGUF writers invent names: [PAD151665], [PAD151666], ...
    parts = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    parts["normalizer"] = {"type": "NFC"}
    vocabulary = parts["model"]["vocab"]
    parts["model"]["vocab"] = {t: i for t, i in vocabulary.items() if _PADDING_TOKEN.fullmatch(t) is None}
    (folder / "tokenizer.json").write_text(json.dumps(parts, ensure_ascii=False), encoding="utf-8")

    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    config = {key: value for key, value in config.items() if key not in ("is_local", "local_files_only")}
    _write_json(folder / "tokenizer_config.json", config | {"model_max_length": max_length})


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
