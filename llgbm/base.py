"""Loads a frozen base: its model, tokenizer and shape in one object."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llgbm.config import MODEL_SPECS, ModelSpec
from llgbm.errors import PretrainedNotFoundError
from llgbm.frozen_linear import Storage, store_linears
from llgbm.pretrained import pretrained_revision, resolve_pretrained
from llgbm.quiet import no_progress_bars


@dataclass(frozen=True, eq=False)
class Base:
    """A frozen decoder.

    Attributes:
        model: a transformers causal LM in eval mode; no parameter requires grad.
        tokenizer: its tokenizer, with the chat template.
        spec: the shape; `spec.base_id` is the id that exported adapters name.
        revision: identifies the very weights, for cache keys and manifests.
    """

    model: nn.Module
    tokenizer: Any
    spec: ModelSpec
    revision: str


def load_base(name_or_path: str | Path, *, storage: Storage = "float32") -> Base:
    """Resolve and load a Qwen2.5 base.

    Args:
        name_or_path: a hub id, or a folder in Hugging Face layout. A hub id becomes the base id; the base id of a
            folder is that of the preset with its shape, or the folder's name where there is none.
        storage: how the Linear weights are stored; activations stay float32.

    Raises:
        PretrainedNotFoundError: no source has the weights, or the folder holds another architecture.
        ConfigError: an unknown storage.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    path = resolve_pretrained(name_or_path)
    config = AutoConfig.from_pretrained(path)
    if config.model_type != "qwen2":
        raise PretrainedNotFoundError(
            f"{path} holds a {config.model_type} model; LLGBM works with Qwen2.5 (model_type qwen2)"
        )
    with no_progress_bars():
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="sdpa")
    model.eval().requires_grad_(False)
    store_linears(model, storage)
    spec = _spec(config, name_or_path)
    return Base(model, AutoTokenizer.from_pretrained(path), spec, pretrained_revision(path))


def _spec(config: Any, name_or_path: str | Path) -> ModelSpec:
    shape = ModelSpec.from_hf_config(config, name=str(name_or_path), base_id=str(name_or_path))
    preset = next((s for s in MODEL_SPECS.values() if _shape(s) == _shape(shape)), None)
    if preset is None:
        return shape
    return preset if Path(name_or_path).expanduser().is_dir() else replace(shape, name=preset.name)


def _shape(spec: ModelSpec) -> tuple[int, int, int, int, int]:
    return spec.num_layers, spec.hidden_size, spec.intermediate_size, spec.num_heads, spec.num_kv_heads
