"""Writes a GGUF file of a tiny Qwen2 with random weights and a byte-level tokenizer."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

LAYERS = 2
HIDDEN = 32
INTERMEDIATE = 64
HEADS = 4
KV_HEADS = 2
KV_SIZE = HIDDEN // HEADS * KV_HEADS
CONTEXT = 128

MERGES = ["h e", "l l", "he ll", "hell o", "c a", "ca f"]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _byte_characters() -> list[str]:
    """The 256 characters for bytes in GPT-2's tokenizer, in the order of the bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


WORDS = _byte_characters() + ["".join(pair.split()) for pair in MERGES]
ENDOFTEXT, IM_START, IM_END = range(len(WORDS), len(WORDS) + len(SPECIAL))
VOCABULARY = 288
"""Rows of the embedding: more than tokens, as in Qwen."""


def tiny_tensors(seed: int = 0, layers: int = LAYERS) -> dict[str, NDArray[np.float32]]:
    """Random float32 tensors by their GGUF names, with numpy's shapes (out, in)."""
    shapes: dict[str, tuple[int, ...]] = {
        "output.weight": (VOCABULARY, HIDDEN),
        "token_embd.weight": (VOCABULARY, HIDDEN),
    }
    for i in range(layers):
        shapes |= {
            f"blk.{i}.attn_norm.weight": (HIDDEN,),
            f"blk.{i}.attn_q.weight": (HIDDEN, HIDDEN),
            f"blk.{i}.attn_q.bias": (HIDDEN,),
            f"blk.{i}.attn_k.weight": (KV_SIZE, HIDDEN),
            f"blk.{i}.attn_k.bias": (KV_SIZE,),
            f"blk.{i}.attn_v.weight": (KV_SIZE, HIDDEN),
            f"blk.{i}.attn_v.bias": (KV_SIZE,),
            f"blk.{i}.attn_output.weight": (HIDDEN, HIDDEN),
            f"blk.{i}.ffn_norm.weight": (HIDDEN,),
            f"blk.{i}.ffn_gate.weight": (INTERMEDIATE, HIDDEN),
            f"blk.{i}.ffn_up.weight": (INTERMEDIATE, HIDDEN),
            f"blk.{i}.ffn_down.weight": (HIDDEN, INTERMEDIATE),
        }
    shapes["output_norm.weight"] = (HIDDEN,)
    rng = np.random.default_rng(seed)
    return {name: rng.normal(scale=0.3, size=shape).astype(np.float32) for name, shape in shapes.items()}


def write_tiny_gguf(
    path: Path,
    tensors: Mapping[str, NDArray[np.float32]],
    *,
    layers: int = LAYERS,
    architecture: str = "qwen2",
    quantised: Mapping[str, gguf.GGMLQuantizationType] | None = None,
    without_eos: bool = False,
    rope_scaling: bool = False,
) -> None:
    """Write `tensors` as F32, except those named in `quantised`."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(layers)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INTERMEDIATE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(1_000_000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    if rope_scaling:
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    _add_tokenizer(writer, without_eos)
    for name, values in tensors.items():
        kind = (quantised or {}).get(name)
        data: Any = values if kind is None else gguf.quants.quantize(values, kind)
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(writer: gguf.GGUFWriter, without_eos: bool) -> None:
    padding = [f"[PAD{i}]" for i in range(len(WORDS) + len(SPECIAL), VOCABULARY)]
    kinds = [gguf.TokenType.NORMAL] * len(WORDS)
    kinds += [gguf.TokenType.CONTROL] * len(SPECIAL) + [gguf.TokenType.UNUSED] * len(padding)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([*WORDS, *SPECIAL, *padding])
    writer.add_token_types(kinds)
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(ENDOFTEXT)
    if not without_eos:
        writer.add_eos_token_id(IM_END)
    writer.add_pad_token_id(ENDOFTEXT)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)
