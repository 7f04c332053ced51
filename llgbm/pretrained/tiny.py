"""Tiny random substitutes for the frozen parts, so that the whole stack runs in seconds and without a download.

`build_tiny_base` writes a Qwen2 of preset `tiny` with a byte-level tokenizer and Qwen's chat template.
`build_tiny_encoder` writes a sentence-transformers folder with vectors of 384 numbers. Both have the files of the real
ones, are float32 and depend only on their seed. They know no language: they are for tests, examples and dry runs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import nn

from llgbm.config import model_spec
from llgbm.pretrained.byte_level import byte_vocabulary

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_END_OF_TEXT, _TURN_START, _TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
_SPECIALS = (_END_OF_TEXT, _TURN_START, _TURN_END)
_MAX_POSITIONS = 4096
_SYSTEM = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."

_CHAT_TEMPLATE = (
    """\
{%- if messages[0]['role'] != 'system' %}
    {{- '<|im_start|>system\\n"""
    + _SYSTEM
    + """<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message['role'] == 'tool' %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + message['content'] + '\\n</tool_response><|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] }}
        {%- for call in message.tool_calls or () %}
            {{- '\\n<tool_call>\\n' + call.function | tojson + '\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
)

_ENCODER_SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_ENCODER_SIZE = 384
_ENCODER_POSITIONS = 256
_ENCODER_WORDS = """
a an and answer are as belongs below between by capital case change choose class classify
code colour complete convert count country date decide describe does each emotion english extract false find
first fix followed for form format french from german give given how if in input into is it italian item json
kind label language last letters list lower make maths meaning name negative no number of on one only opposite
or order output past plural positive question read rephrase reply return reverse review rewrite sentence
sentiment short shorter simple sort spanish spell sql say says style sum summarise tell text that the then
this title to tone topic translate true turn two uppercase use what which whether with word words write yes
you your
"""


def build_tiny_base(folder: Path, *, seed: int = 0) -> Path:
    """Write a random Qwen2 of preset `tiny` with its tokenizer to `folder`, created if missing.

    The weights are larger than in a fresh model, so that greedy answers vary with the prompt and a small adapter
    changes them.

    Returns:
        `folder`, in Hugging Face layout, for `load_base` and `from_pretrained`.
    """
    from transformers import Qwen2Config, Qwen2ForCausalLM

    spec = model_spec("tiny")
    vocabulary = byte_vocabulary()
    ids = {token: len(vocabulary) + i for i, token in enumerate(_SPECIALS)}
    config = Qwen2Config(
        vocab_size=len(vocabulary) + len(_SPECIALS),
        hidden_size=spec.hidden_size,
        intermediate_size=spec.intermediate_size,
        num_hidden_layers=spec.num_layers,
        num_attention_heads=spec.num_heads,
        num_key_value_heads=spec.num_kv_heads,
        max_position_embeddings=_MAX_POSITIONS,
        tie_word_embeddings=True,
        bos_token_id=ids[_END_OF_TEXT],
        eos_token_id=ids[_TURN_END],
        pad_token_id=ids[_END_OF_TEXT],
    )
    _write_model(folder, config, Qwen2ForCausalLM(config), seed=seed, scale=0.125)
    stops = [ids[_TURN_END], ids[_END_OF_TEXT]]
    generation = {"bos_token_id": ids[_END_OF_TEXT], "eos_token_id": stops, "pad_token_id": ids[_END_OF_TEXT]}
    _write_json(folder / "generation_config.json", generation)

    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    tokenizer = _tokenizer_json(
        {"type": "BPE", "vocab": vocabulary, "merges": []},
        ids,
        normalizer={"type": "NFC"},
        pre_tokenizer=byte_level,
        decoder=byte_level,
    )
    _write_json(folder / "tokenizer.json", tokenizer)
    tokenizer_config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "bos_token": _END_OF_TEXT,
        "eos_token": _TURN_END,
        "pad_token": _END_OF_TEXT,
        "model_max_length": _MAX_POSITIONS,
    }
    _write_json(folder / "tokenizer_config.json", tokenizer_config)
    (folder / "chat_template.jinja").write_text(_CHAT_TEMPLATE, encoding="utf-8")
    return folder


def build_tiny_encoder(folder: Path, *, seed: int = 0) -> Path:
    """Write a random sentence-transformers model to `folder`, created if missing.

    One BERT layer, mean pooling and normalisation of 384 numbers, as in all-MiniLM-L6-v2. Its tokenizer knows about 150
    English words and spells the others, so texts on different subjects get different vectors.

    Returns:
        `folder`, for `SentenceTransformer` and `PretrainedTextEncoder`.
    """
    from transformers import BertConfig, BertModel

    vocabulary = _encoder_vocabulary()
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=_ENCODER_SIZE,
        num_hidden_layers=1,
        num_attention_heads=6,
        intermediate_size=_ENCODER_SIZE,
        max_position_embeddings=_ENCODER_POSITIONS,
    )
    _write_model(folder, config, BertModel(config), seed=seed, scale=0.05)
    word_piece = {
        "type": "WordPiece",
        "vocab": vocabulary,
        "unk_token": "[UNK]",
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100,
    }
    tokenizer = _tokenizer_json(
        word_piece,
        {token: vocabulary[token] for token in _ENCODER_SPECIALS},
        normalizer={
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": True,
        },
        pre_tokenizer={"type": "BertPreTokenizer"},
        post_processor={
            "type": "BertProcessing",
            "sep": ["[SEP]", vocabulary["[SEP]"]],
            "cls": ["[CLS]", vocabulary["[CLS]"]],
        },
        decoder={"type": "WordPiece", "prefix": "##", "cleanup": True},
    )
    _write_json(folder / "tokenizer.json", tokenizer)
    tokenizer_config = {"tokenizer_class": "BertTokenizer", "do_lower_case": True}
    _write_json(folder / "tokenizer_config.json", tokenizer_config | {"model_max_length": _ENCODER_POSITIONS})

    steps = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(steps.items())
    ]
    _write_json(folder / "modules.json", modules)
    settings = {"max_seq_length": _ENCODER_POSITIONS, "do_lower_case": False}
    _write_json(folder / "sentence_bert_config.json", settings)
    (folder / "1_Pooling").mkdir(exist_ok=True)
    pooling = {"word_embedding_dimension": _ENCODER_SIZE, "pooling_mode_mean_tokens": True}
    _write_json(folder / "1_Pooling" / "config.json", pooling)
    return folder


def _write_model(folder: Path, config: PretrainedConfig, model: nn.Module, *, seed: int, scale: float) -> None:
    """Write `config` and float32 weights drawn in a fixed order from one generator; norms stay near 1.

    Embeddings that all texts share (positions, token types) are smaller, so that they do not hide the differences.
    """
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator) * scale
        if parameter.dim() == 1 and name.endswith("weight"):
            noise += 1
        elif "position_embeddings" in name or "token_type_embeddings" in name:
            noise *= 0.2
        weights[name] = noise
    config.architectures = [type(model).__name__]
    config.dtype = torch.float32
    config.save_pretrained(folder)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _encoder_vocabulary() -> dict[str, int]:
    """Special tokens, every printable ASCII character at the start of and inside a word, then the known words."""
    letters = [chr(code) for code in range(33, 127)]
    pieces = [*_ENCODER_SPECIALS, *letters, *(f"##{letter}" for letter in letters), *_ENCODER_WORDS.split()]
    return {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}


def _tokenizer_json(model: dict[str, Any], specials: dict[str, int], **parts: Any) -> dict[str, Any]:
    """The content of tokenizer.json; `parts` are the other components of the pipeline."""
    added = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": token, **added} for token, i in specials.items()],
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": None,
        **parts,
        "model": model,
    }


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
