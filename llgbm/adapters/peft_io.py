"""LoRAWeights <-> a PEFT adapter, as a folder or as bytes, and its content digest.

A folder holds `adapter_config.json` and `adapter_model.safetensors` as PEFT writes them, so PEFT, vLLM and LoRAX can
read it. It is written atomically. The reader trusts nothing: it opens two regular files by their fixed names
(`llgbm.adapters.peft_files`), never a pickle, and refuses damaged or oversized files, values that are not finite, and
unexpected shapes or types.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import shutil
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from llgbm.adapters.peft_config import (
    PeftConfig,
    adapter_config,
    config_bytes,
    module_order,
    parse_config_bytes,
    read_config,
    require_coverage,
)
from llgbm.adapters.peft_files import read_adapter_file, refuse_other_kinds
from llgbm.config import LoRASpec, ModuleShape
from llgbm.errors import AdapterFormatError, AdapterMismatchError, ConfigError
from llgbm.files.synced import sync, write_synced
from llgbm.lora import LoRAWeights

__all__ = [
    "CONFIG_FILE",
    "WEIGHTS_FILE",
    "adapter_config",
    "content_digest",
    "from_bytes",
    "load_peft",
    "load_peft_for",
    "require_replaceable",
    "save_peft",
    "to_bytes",
]

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"

MAX_CONFIG_BYTES = 2**20
MAX_HEADER_BYTES = 4 * 2**20
MAX_WEIGHTS_BYTES = 2 * 2**30
"""Far above any adapter of these bases; a larger file, such as a disk image, is refused unread."""

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_TENSOR_NAME = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight", re.ASCII)


def to_bytes(weights: LoRAWeights) -> bytes:
    """The content of `adapter_model.safetensors`, under PEFT's names and in the adapter's own dtype.

    Raises:
        AdapterFormatError: a NaN or an infinity, or an unsupported dtype.
    """
    weights.require_finite()
    if weights.dtype not in _DTYPES:
        raise AdapterFormatError(f"adapters are stored in float32, float16 or bfloat16, not {weights.dtype}")
    tensors = {}
    for name, a, b in weights.pairs():
        tensors[f"base_model.model.{name}.lora_A.weight"] = a.detach().cpu().contiguous()
        tensors[f"base_model.model.{name}.lora_B.weight"] = b.detach().cpu().contiguous()
    return save_tensors(tensors, metadata={"format": "pt"})


def from_bytes(data: bytes, config: Mapping[str, Any]) -> LoRAWeights:
    """Read an adapter from the contents of its two files.

    Args:
        data: bytes of `adapter_model.safetensors`.
        config: content of `adapter_config.json`.

    Returns:
        The adapter in its stored dtype. Its modules are in the order of layers and `TARGET_MODULES`.

    Raises:
        AdapterFormatError: the adapter is invalid; the message says why.
    """
    return _assemble(read_config(config), _read_tensors(data))


def content_digest(weights: LoRAWeights) -> str:
    """sha256 (hex) over rank, alpha, kind of scaling and the names, dtypes, shapes and bytes of all tensors.

    It does not depend on the order of the modules or on the file format.
    """
    spec = weights.spec
    digest = hashlib.sha256(f"rank={spec.rank} alpha={float(spec.alpha)!r} rslora={spec.use_rslora}\n".encode())
    for name in sorted(spec.names):
        for side, tensor in (("A", weights.a[name]), ("B", weights.b[name])):
            plain = tensor.detach().cpu().contiguous()
            digest.update(f"{name} {side} {plain.dtype} {tuple(plain.shape)}\n".encode())
            digest.update(plain.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_peft(weights: LoRAWeights, folder: Path, *, base_id: str) -> None:
    """Write an adapter to `folder` atomically.

    The files are written and synced in a temporary folder next to `folder`, which is then renamed. An equal adapter
    already there is kept; a different one is replaced with its whole folder.

    Raises:
        AdapterFormatError: the adapter has a NaN or an infinity, or an unsupported dtype.
        OSError: the disk is full, or the place is not writable; nothing is left behind.
    """
    files = {
        CONFIG_FILE: config_bytes(adapter_config(weights.spec, base_id)),
        WEIGHTS_FILE: to_bytes(weights),
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_path(folder)
    try:
        temporary.mkdir()
        for name, data in files.items():
            write_synced(temporary / name, data)
        sync(temporary)
        while not _renamed(temporary, folder):
            if _holds(folder, files):
                return
            _move_away(folder)
        sync(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def require_replaceable(folder: Path) -> None:
    """Check that `save_peft` replaces nothing in `folder` but an adapter.

    Raises:
        ConfigError: `folder` is a file, or holds other files than an adapter's.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ConfigError(f"{folder} is a file; name a folder for the adapter")
    others = sorted({path.name for path in folder.iterdir()} - {CONFIG_FILE, WEIGHTS_FILE})
    if others:
        raise ConfigError(
            f"{folder} holds other files ({', '.join(others[:3])}), which would be lost; name a new folder"
        )


def load_peft(folder: Path) -> tuple[LoRAWeights, str]:
    """Read an adapter's folder, written by this library or by PEFT.

    Returns:
        The adapter, and the base id in its config.

    Raises:
        AdapterFormatError: there is no adapter, or it is invalid; the message says why.
    """
    try:
        # one handle for both files: a folder replaced meanwhile cannot mix two adapters
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise AdapterFormatError(f"no adapter in {folder}: {error.strerror}") from error
    try:
        raw_config = read_adapter_file(handle, folder, CONFIG_FILE, MAX_CONFIG_BYTES)
        data = read_adapter_file(handle, folder, WEIGHTS_FILE, MAX_WEIGHTS_BYTES)
        config = read_config(parse_config_bytes(raw_config))
        return _assemble(config, _read_tensors(data)), config.base_id
    except AdapterFormatError as error:
        raise AdapterFormatError(f"{folder}: {error}") from error
    finally:
        os.close(handle)


def load_peft_for(folder: Path, base_id: str) -> LoRAWeights:
    """Read an adapter's folder as `load_peft` does, if it names this base.

    Raises:
        AdapterFormatError: there is no adapter, or it is invalid; the message says why.
        AdapterMismatchError: it names another base, even one of the same shape.
    """
    weights, named = load_peft(folder)
    if named != base_id:
        raise AdapterMismatchError(
            f"{folder} was made for {named}, not for {base_id}; leave it out, or use its own base"
        )
    return weights


def _assemble(config: PeftConfig, tensors: Mapping[str, Tensor]) -> LoRAWeights:
    if not tensors or all(tensor.numel() == 0 for tensor in tensors.values()):
        raise AdapterFormatError(
            f"{WEIGHTS_FILE} holds no numbers; it was saved where the weights were not (DeepSpeed's ZeRO-3 and FSDP "
            "keep them on several processes): gather them first, then call save_pretrained again"
        )
    sides: dict[str, dict[str, Tensor]] = {"A": {}, "B": {}}
    for key, tensor in tensors.items():
        match = _TENSOR_NAME.fullmatch(key)
        if match is None or module_order(match[1]) is None:
            raise AdapterFormatError(f"the tensor {key[:200]!r} is not a LoRA factor of a decoder's projection")
        if tensor.dim() != 2 or 0 in tensor.shape or tensor.dtype not in _DTYPES:
            raise AdapterFormatError(
                f"{key} is {tensor.dtype} of shape {tuple(tensor.shape)}; "
                "expected a matrix of float32, float16 or bfloat16"
            )
        sides[match[2]][match[1]] = tensor
    a, b = sides["A"], sides["B"]
    if a.keys() != b.keys():
        raise AdapterFormatError(
            f"{len(a)} modules have a lora_A and {len(b)} a lora_B; unpaired are {sorted(a.keys() ^ b.keys())[:3]}"
        )
    if len({tensor.dtype for tensor in tensors.values()}) > 1:
        raise AdapterFormatError("the tensors have several dtypes; convert them to one")
    require_coverage(config, a)
    names = sorted(a, key=lambda name: module_order(name) or (0, 0))
    modules = tuple(ModuleShape(name, a[name].shape[1], b[name].shape[0]) for name in names)
    weights = LoRAWeights(LoRASpec(config.rank, config.alpha, modules, config.use_rslora), a, b)
    weights.require_finite()
    return weights


def _read_tensors(data: bytes) -> dict[str, Tensor]:
    if len(data) > MAX_WEIGHTS_BYTES:
        raise AdapterFormatError(f"{WEIGHTS_FILE} has {len(data)} bytes, more than {MAX_WEIGHTS_BYTES}")
    header = struct.unpack("<Q", data[:8])[0] if len(data) >= 8 else 0
    if not 2 <= header <= len(data) - 8:
        refuse_other_kinds(data, WEIGHTS_FILE)  # only now: the length of a header may look like any of them
        raise AdapterFormatError(f"{WEIGHTS_FILE} is cut short or not a safetensors file; copy or download it again")
    if header > MAX_HEADER_BYTES:
        raise AdapterFormatError(f"{WEIGHTS_FILE} has a header of {header} bytes, more than {MAX_HEADER_BYTES}")
    try:
        return load_tensors(data)
    except (SafetensorError, ValueError, KeyError, RuntimeError, OverflowError) as error:
        raise AdapterFormatError(f"{WEIGHTS_FILE} is damaged or not a safetensors file: {error}") from error


def _temporary_path(folder: Path) -> Path:
    return folder.parent / f".{folder.name}.{secrets.token_hex(6)}.tmp"


def _renamed(temporary: Path, folder: Path) -> bool:
    """Rename `temporary` to `folder`; False if a folder with content is in the way."""
    try:
        temporary.rename(folder)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    return True


def _holds(folder: Path, files: Mapping[str, bytes]) -> bool:
    try:
        return all((folder / name).read_bytes() == data for name, data in files.items())
    except OSError:
        return False


def _move_away(folder: Path) -> None:
    old = _temporary_path(folder)
    try:
        folder.rename(old)
    except FileNotFoundError:  # another writer was faster
        return
    shutil.rmtree(old)
