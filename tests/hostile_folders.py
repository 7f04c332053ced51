"""Invalid adapter folders: truncated, oversized, of wrong types, not finite, pickled, linked or misnamed.

`spoilers` draws one way to damage a valid PEFT folder. Every reader must refuse the result.
"""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor

from llgbm.adapters.peft_io import CONFIG_FILE, MAX_CONFIG_BYTES, WEIGHTS_FILE

FILES = st.sampled_from([CONFIG_FILE, WEIGHTS_FILE])
WRONG_DTYPES = [torch.float64, torch.int8, torch.int32, torch.int64, torch.uint8, torch.bool]
PATHS = ["../../evil", "/etc/evil", "model.layers.0/../../evil", "..", "a\0b", "model.layers.0.mlp.q_proj"]
UNSUPPORTED = {"use_dora": True, "bias": "all", "rank_pattern": {"q_proj": 1}, "modules_to_save": ["../lm_head"]}


class Bomb:
    """A pickle that creates a file when it is read."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def _tensors(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load((folder / WEIGHTS_FILE).read_bytes())
    change(tensors)
    (folder / WEIGHTS_FILE).write_bytes(save(tensors))


def _torn(draw: st.DrawFn, folder: Path) -> None:
    path = folder / draw(FILES)
    data = path.read_bytes()
    path.write_bytes(data[: draw(st.integers(0, len(data) - 3))])  # JSON without its last line break is complete


def _longer(draw: st.DrawFn, folder: Path) -> None:
    with (folder / draw(FILES)).open("ab") as file:
        file.write(draw(st.binary(min_size=1, max_size=40).filter(lambda data: data.strip())))


def _oversized(draw: st.DrawFn, folder: Path) -> None:
    with (folder / CONFIG_FILE).open("ab") as file:
        file.write(b" " * draw(st.integers(MAX_CONFIG_BYTES, MAX_CONFIG_BYTES + 9)))


def _oversized_header(draw: st.DrawFn, folder: Path) -> None:
    path = folder / WEIGHTS_FILE
    data = path.read_bytes()
    path.write_bytes(draw(st.integers(len(data) - 7, 2**64 - 1)).to_bytes(8, "little") + data[8:])


def _wrong_dtype(draw: st.DrawFn, folder: Path) -> None:
    dtype = draw(st.sampled_from(WRONG_DTYPES))
    every = draw(st.booleans())
    place = draw(st.integers(0, 10**6))

    def change(tensors: dict[str, Tensor]) -> None:
        names = sorted(tensors) if every else [sorted(tensors)[place % len(tensors)]]
        tensors.update({name: tensors[name].to(dtype) for name in names})

    _tensors(folder, change)


def _not_finite(draw: st.DrawFn, folder: Path) -> None:
    value = draw(st.sampled_from([float("nan"), float("inf"), -float("inf")]))
    tensor, place = draw(st.integers(0, 10**6)), draw(st.integers(0, 10**6))

    def change(tensors: dict[str, Tensor]) -> None:
        flat = tensors[sorted(tensors)[tensor % len(tensors)]].view(-1)
        flat[place % len(flat)] = value

    _tensors(folder, change)


def _wrong_shape(draw: st.DrawFn, folder: Path) -> None:
    tensor, times = draw(st.integers(0, 10**6)), draw(st.integers(2, 3))

    def change(tensors: dict[str, Tensor]) -> None:
        name = sorted(tensors)[tensor % len(tensors)]
        # a rank that differs from the config; only a base can refuse other widths
        tensors[name] = tensors[name].repeat((times, 1) if "lora_A" in name else (1, times))

    _tensors(folder, change)


def _wandering_name(draw: st.DrawFn, folder: Path) -> None:
    path, replaces = draw(st.sampled_from(PATHS)), draw(st.booleans())

    def change(tensors: dict[str, Tensor]) -> None:
        name = sorted(tensors)[0]
        tensor = tensors.pop(name) if replaces else tensors[name].clone()
        tensors[f"base_model.model.{path}.lora_A.weight"] = tensor

    _tensors(folder, change)


def _pickled(draw: st.DrawFn, folder: Path) -> None:
    content = pickle.dumps(Bomb(folder.parent / "the pickle ran"), protocol=draw(st.integers(0, 5)))
    (folder / WEIGHTS_FILE).unlink()
    (folder / draw(st.sampled_from([WEIGHTS_FILE, "adapter_model.bin"]))).write_bytes(content)


def _linked(draw: st.DrawFn, folder: Path) -> None:
    name = draw(FILES)
    (folder / name).rename(folder.parent / name)
    (folder / name).symlink_to(draw(st.sampled_from([folder.parent / name, Path("..") / name, Path(name)])))


def _no_file(draw: st.DrawFn, folder: Path) -> None:
    name = draw(FILES)
    (folder / name).unlink()
    make: Callable[[Path], object] | None = draw(st.sampled_from([None, os.mkfifo, os.mkdir]))
    if make is not None:
        make(folder / name)


def _wrong_options(draw: st.DrawFn, folder: Path) -> None:
    options = json.loads((folder / CONFIG_FILE).read_text())
    change: dict[str, Any] = draw(
        st.sampled_from([{name: value} for name, value in UNSUPPORTED.items()])
        | st.sampled_from([{"r": options["r"] + 1}, {"r": -1}, {"r": "1"}, {"lora_alpha": float("nan")}])
        | st.sampled_from([{"target_modules": ["../x"]}, {"peft_type": "LOHA"}, {"base_model_name_or_path": ""}])
    )
    (folder / CONFIG_FILE).write_text(json.dumps({**options, **change}))


WAYS = [
    _torn,
    _longer,
    _oversized,
    _oversized_header,
    _wrong_dtype,
    _not_finite,
    _wrong_shape,
    _wandering_name,
    _pickled,
    _linked,
    _no_file,
    _wrong_options,
]


@st.composite
def spoilers(draw: st.DrawFn) -> Callable[[Path], str]:
    """A function that damages a PEFT folder and returns the kind of damage; it writes only there and in the parent."""
    way = draw(st.sampled_from(WAYS))

    def spoil(folder: Path) -> str:
        way(draw, folder)
        return way.__name__

    return spoil
