"""Loads a frozen base: model, tokenizer and shape in one object, or without the model if another engine decodes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llgbm.config import MODEL_SPECS, ModelSpec
from llgbm.errors import ConfigError, PretrainedNotFoundError
from llgbm.linears.frozen_linear import Storage, store_linears
from llgbm.linears.int8 import Int8TrainingLinear
from llgbm.linears.int8_file import int8_path, map_int8, pack_int8, read_int8, write_int8
from llgbm.linears.int8_weight_only import Int8WeightOnlyLinear
from llgbm.pretrained.find import no_progress_bars, pretrained_revision, resolve_pretrained
from llgbm.pretrained.folder import folder_problem

INT8_FOLDER = "int8"
"""Name of the folder of int8 weights in a cache folder."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Base:
    """A frozen decoder.

    Attributes:
        model: a transformers causal LM in eval mode; no parameter requires grad.
        tokenizer: its tokenizer, with the chat template.
        spec: the shape; `spec.base_id` is the id that exported adapters name.
        revision: identifies the exact weights, for cache keys and manifests.
    """

    model: nn.Module
    tokenizer: Any
    spec: ModelSpec
    revision: str

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return next(self.model.parameters()).device

    @property
    def activation_dtype(self) -> torch.dtype:
        """Dtype of the model's activations: that of the final norm, since embeddings may be mapped in another one."""
        return self.model.get_parameter("model.norm.weight").dtype

    @property
    def max_positions(self) -> int:
        """Maximum context of the model, in tokens."""
        config: Any = self.model.config
        return int(config.max_position_embeddings)


@dataclass(frozen=True, eq=False)
class BareBase:
    """A base without its model: enough to make adapters and to tokenise conversations.

    Attributes:
        tokenizer, spec, revision: as in `Base`.
        max_positions: maximum context of the model, in tokens.
    """

    tokenizer: Any
    spec: ModelSpec
    revision: str
    max_positions: int


def load_base(
    name_or_path: str | Path, *, storage: Storage = "float32", device: str = "cpu", int8_folder: Path | None = None
) -> Base:
    """Resolve and load a Qwen2.5 base.

    Args:
        name_or_path: a hub id, or a folder in Hugging Face layout. A hub id becomes the base id. A folder gets the
            base id of the preset with the same shape, else the folder's name.
        storage: how the Linear weights are stored. On a CPU activations stay float32, except with
            "bfloat16_activations" and "int8_mapped". On a GPU "bfloat16" applies to the whole model, since GPUs
            multiply in bfloat16.
        device: a torch device, "cpu" or "cuda".
        int8_folder: with int8 and int8_mapped, where the quantised weights are kept. The first call for a base writes
            its file, and later ones read or map it and never the float32 weights. A damaged file is written anew; one
            that cannot be written is done without, and the log says so.

    Raises:
        PretrainedNotFoundError: no source has the weights, or the folder holds another architecture.
        ConfigError: an unknown storage, int8 on a GPU (its kernels are for CPUs), or no GPU where one is asked for.
    """
    path = resolve_pretrained(name_or_path)
    on_gpu = torch.device(device).type != "cpu"
    if on_gpu and storage in ("int8", "int8_training", "int8_mapped"):
        raise ConfigError("int8 is for CPUs; on a GPU choose bfloat16 or float32")
    if on_gpu and not torch.cuda.is_available():
        raise ConfigError(f"torch finds no GPU for {device}; install a build of torch for it, or choose cpu")
    whole = storage == "bfloat16_activations" or (on_gpu and storage == "bfloat16")
    dtype = torch.bfloat16 if whole else torch.float32
    revision = pretrained_revision(path)
    kept = None
    if storage in ("int8", "int8_mapped") and int8_folder is not None:
        kept = int8_path(int8_folder, revision)
    model = None
    if storage == "int8" and kept is not None and kept.is_file():
        # the rows are packed while this thread imports the model's code and reads the tokenizer
        with ThreadPoolExecutor(1) as pool:
            packing = pool.submit(pack_int8, kept)
            config, tokenizer = _config(path), _tokenizer(path)
            model = _kept_model(kept, partial(read_int8, products=packing.result), path, config)
    else:
        config, tokenizer = _config(path), _tokenizer(path)
        if kept is not None and kept.is_file():
            model = _kept_model(kept, map_int8, path, config)
    if model is None:
        model = _float_model(path, dtype).to(device)
        written = None
        if kept is not None and _keep_model(model, kept):
            read: Callable[[nn.Module, Path], None] = map_int8
            if storage == "int8":
                read = partial(read_int8, products=partial(pack_int8, kept))
            written = _kept_model(kept, read, path, config)
        if written is None:
            store_linears(model, "float32" if on_gpu and whole else storage)
        model = written or model
    return Base(model, tokenizer, _spec(config, name_or_path), revision)


def load_bare_base(name_or_path: str | Path) -> BareBase:
    """As `load_base`, without reading the weights. A folder of the caller need not hold any.

    Raises:
        PretrainedNotFoundError: no source has the base, or the folder holds another architecture.
    """
    named = Path(name_or_path).expanduser()
    path = named if folder_problem(named, weights=False) is None else resolve_pretrained(name_or_path)
    config = _config(path)
    revision = pretrained_revision(path, weights=folder_problem(path) is None)
    return BareBase(_tokenizer(path), _spec(config, name_or_path), revision, int(config.max_position_embeddings))


def storage_of(base: Base) -> str:
    """How the base stores its Linear weights, one of `Storage`."""
    linear = base.model.get_submodule(base.spec.module_shape(0, "down_proj").name)
    if isinstance(linear, Int8TrainingLinear):
        return "int8_training"
    if isinstance(linear, Int8WeightOnlyLinear):
        return "int8_mapped"
    weight = getattr(linear, "weight", None)
    if not isinstance(weight, torch.Tensor):
        return "int8"
    # on a GPU, "bfloat16" is the whole model
    embeddings = next(base.model.parameters())
    if weight.dtype == embeddings.dtype == torch.bfloat16 and embeddings.device.type == "cpu":
        return "bfloat16_activations"
    return str(weight.dtype).removeprefix("torch.")


def numerics_of(base: Base) -> str:
    """`storage_of`, and the device if it is no CPU. Measurements with different values are not compared."""
    device = base.device.type
    return storage_of(base) if device == "cpu" else f"{storage_of(base)} on {device}"


def require_gradients(base: Base) -> None:
    """Raise ConfigError if the base's Linears pass no gradients: int8 kernels would drop them silently."""
    if storage_of(base) == "int8":
        raise ConfigError(
            "a base in int8 passes no gradients; to train through it, load it with int8_training, bfloat16 or float32 "
            "storage"
        )


def _float_model(path: Path, dtype: torch.dtype) -> nn.Module:
    from transformers import AutoModelForCausalLM

    with no_progress_bars():
        model: nn.Module = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation="sdpa")
    return model.eval().requires_grad_(False)


def _kept_model(kept: Path, read: Callable[[nn.Module, Path], None], path: Path, config: Any) -> nn.Module | None:
    """The model of the int8 file `kept`; None if there is none, or a damaged one.

    Args:
        kept: the file.
        read: gives a model on the meta device the content of the file.
        path, config: of the base in float32; only its generation config is read.
    """
    from transformers import AutoModelForCausalLM, GenerationConfig

    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa")
    try:
        read(model, kept)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        _log.warning("the int8 weights are made again: %s", error)
        return None
    # not in the file: the frequencies of the rotations, which the constructor computes, and how answers end
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    if (path / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(path)
    evaluated: nn.Module = model.eval()
    return evaluated


def _keep_model(model: nn.Module, kept: Path) -> bool:
    """Write the int8 form of a float32 model to `kept`; False, and a line in the log, if that is not possible."""
    try:
        write_int8(model, kept)
    except OSError as error:
        _log.warning("the int8 weights are not kept in %s, and the next start makes them again: %s", kept, error)
        return False
    return True


def _config(path: Path) -> Any:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(path)
    if config.model_type != "qwen2":
        raise PretrainedNotFoundError(
            f"{path} holds a {config.model_type} model; LLGBM works with Qwen2.5 (model_type qwen2)"
        )
    return config


def _tokenizer(path: Path) -> Any:
    """The tokenizer as tokenizer.json says, or made from the older files by the class that the folder names.

    That class would keep the vocabulary and the merges a second time, 50 MB for Qwen2.5.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    kind: Any = PreTrainedTokenizerFast if (path / "tokenizer.json").is_file() else AutoTokenizer
    return kind.from_pretrained(path)


def _spec(config: Any, name_or_path: str | Path) -> ModelSpec:
    shape = ModelSpec.from_hf_config(config, name=str(name_or_path), base_id=str(name_or_path))
    preset = next((s for s in MODEL_SPECS.values() if _shape(s) == _shape(shape)), None)
    if preset is None:
        return shape
    return preset if Path(name_or_path).expanduser().is_dir() else replace(shape, name=preset.name)


def _shape(spec: ModelSpec) -> tuple[int, int, int, int, int]:
    return spec.num_layers, spec.hidden_size, spec.intermediate_size, spec.num_heads, spec.num_kv_heads
