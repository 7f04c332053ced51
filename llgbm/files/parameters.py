"""Parameters as an artefact stores them: a generator's shared bases in int8, the others in float16; and digests."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from llgbm.errors import CheckpointError

_INT8_PREFIXES = ("a0.", "b0.")


def stored(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The parameters in storage form: the shared bases in int8 with one scale per row, the others in float16.

    Raises:
        CheckpointError: float16 cannot hold a value.
    """
    tensors: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if not bool(torch.isfinite(tensor.half()).all()):
            raise CheckpointError(f"{name} has values that float16 cannot hold, such as NaN; the training went wrong")
        if name.startswith(_INT8_PREFIXES):
            # (modules, R, size) -> scales (modules, R, 1); 1e-12 keeps an all-zero row, as in a fresh B0, from 0 / 0
            scale = (tensor.abs().amax(dim=-1, keepdim=True) / 127).clamp_min(1e-12)
            tensors[name + ":int8"] = (tensor / scale).round().clamp(-127, 127).to(torch.int8)
            tensors[name + ":scale"] = scale.float()
        else:
            tensors[name] = tensor.half()
    return tensors


def read_back(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Inverse of `stored`: the parameters in float32."""
    state = {n: t.float() for n, t in tensors.items() if ":" not in n}
    for name in [n.removesuffix(":int8") for n in tensors if n.endswith(":int8")]:
        state[name] = tensors[name + ":int8"].float() * tensors[name + ":scale"]
    return state


def taken(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, taken out of `tensors`, under their names without it."""
    return {n.removeprefix(prefix): tensors.pop(n) for n in [name for name in tensors if name.startswith(prefix)]}


def values_digest(tensors: Mapping[str, Tensor], number_format: str) -> str:
    """sha256 (hex) of names, shapes and values in the order given; equal on every machine.

    Args:
        number_format: numpy's name of the format that the values are read in, such as `<f4`.
    """
    content = hashlib.sha256()
    for name, tensor in tensors.items():
        content.update(f"{name}\0{tuple(tensor.shape)}\0".encode())
        content.update(tensor.float().numpy().astype(number_format).tobytes())
    return content.hexdigest()
