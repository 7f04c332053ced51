"""An int8 model in a file, so that it is quantised once and not at each start.

The file has the stacked rows, scales and biases of the Linears (`Int8Weight`) and all other parameters in float32. It
is written to a temporary name, synced and renamed, so a reader finds a whole file or none. For decoding, the int8 rows
are mapped only while the kernel copies them into its own order. The other parameters stay mapped: of the
embeddings, pages that no token asks for take no memory, and processes share the others. A base for training keeps the
rows mapped too.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from llgbm.linears.frozen_linear import int8_readers, linears_of, product_dtype, stacked_int8
from llgbm.linears.int8 import FbgemmProduct, Int8Weight
from llgbm.linears.int8_weight_only import weight_only_group
from llgbm.linears.shared_input import input_groups

VERSION = 1
"""Of the quantisation and of the file's layout; a change of either needs a new number."""
_METADATA = {"format": "llgbm-int8", "version": str(VERSION)}
_ROWS, _SCALES, _BIAS = ".rows", ".scales", ".bias"
_PACKING_THREADS = 2
"""A head of 151,936 outputs takes as long to pack as all other Linears of a small model, so more threads would wait."""
_DTYPES = {"I8": torch.int8, "F32": torch.float32}


def int8_path(folder: Path, revision: str) -> Path:
    """The file of a base's revision in `folder`."""
    return folder / f"{revision}-v{VERSION}.safetensors"


def write_int8(model: nn.Module, path: Path) -> None:
    """Write the int8 form of a float32 model to `path`. Other processes that want to write it wait.

    Raises:
        OSError: the disk is full, or the folder is not writable; no file is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    with FileLock(path.with_suffix(".lock")):
        try:
            save_file(_tensors(model), temporary, metadata=_METADATA)
            temporary.chmod(0o644)  # its writer lets only the owner read it; several users may share the folder
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        except SafetensorError as error:  # what the format's writer makes of an error of the disk
            raise OSError(str(error)) from error
        finally:
            temporary.unlink(missing_ok=True)


def pack_int8(path: Path) -> dict[str, FbgemmProduct]:
    """The products of the Linears in `path`, by the names of the groups in the file.

    It works in two threads for some seconds; other Python threads run meanwhile.

    Raises:
        FileNotFoundError: there is no file.
        ValueError: the file is damaged, or of another version.
        ConfigError: torch has no int8 kernel for this CPU.
    """
    with _opened(path) as file, ThreadPoolExecutor(_PACKING_THREADS, "llgbm-pack-int8") as pool:
        names = set(file.keys())
        sizes = {
            name.removesuffix(_ROWS): prod(file.get_slice(name).get_shape()) for name in names if name.endswith(_ROWS)
        }
        largest_first = sorted(sizes, key=lambda group: sizes[group], reverse=True)

        def pack(group: str) -> FbgemmProduct:
            weight = Int8Weight(file.get_tensor(group + _ROWS), file.get_tensor(group + _SCALES))
            return FbgemmProduct(weight, file.get_tensor(group + _BIAS).clone() if group + _BIAS in names else None)

        return dict(zip(largest_first, pool.map(pack, largest_first), strict=True))


def read_int8(model: nn.Module, path: Path, products: Callable[[], dict[str, FbgemmProduct]]) -> None:
    """Give a model on the meta device the content of `path`: int8 modules in place of its Linears, and parameters.

    Args:
        products: returns those of `pack_int8`, perhaps from another thread.

    Raises:
        FileNotFoundError: there is no file.
        ValueError: the file is damaged, or was written for another model; `model` may be changed in part.
        ConfigError: torch has no int8 kernel for this CPU.
    """
    packed = products()  # before the file is opened again, so that the mapping of the rows has ended

    def modules(_: Any, prefix: str, linears: Sequence[nn.Linear]) -> Sequence[nn.Module]:
        return int8_readers(linears, packed[prefix])

    _fill(model, path, modules, torch.float32)


def map_int8(model: nn.Module, path: Path) -> None:
    """As `read_int8`, with modules for training: rows and embeddings stay mapped, so processes share them.

    Activations are in `product_dtype`.

    Raises:
        FileNotFoundError, ValueError: as in `read_int8`.
    """
    dtype = product_dtype()

    def modules(file: Any, prefix: str, linears: Sequence[nn.Linear]) -> Sequence[nn.Module]:
        bias = file.get_tensor(prefix + _BIAS) if any(m.bias is not None for m in linears) else None
        weight = Int8Weight(file.get_tensor(prefix + _ROWS), file.get_tensor(prefix + _SCALES))
        return weight_only_group(linears, weight, bias, dtype)

    _fill(model, path, modules, dtype)
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.register_forward_hook(lambda _, __, out: out.to(dtype))


def _fill(
    model: nn.Module,
    path: Path,
    modules: Callable[[Any, str, Sequence[nn.Linear]], Sequence[nn.Module]],
    dtype: torch.dtype,
) -> None:
    """Set the modules and parameters of a model on the meta device.

    Args:
        modules: for the open file, the name of a group in it and the group's Linears.
        dtype: of the parameters; embeddings stay mapped in float32.
    """
    linears = linears_of(model)
    groups = input_groups(linears)
    others = {name: t for name, t in model.state_dict().items() if name.rpartition(".")[0] not in linears}
    wanted = {name: (torch.float32, tuple(t.shape)) for name, t in others.items()}
    for names in groups:
        wanted |= _layout(names, linears)
    with _opened(path) as file:
        found = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118, it is no dict
        shapes = {name: (_DTYPES.get(s.get_dtype()), tuple(s.get_shape())) for name, s in found.items()}
        if shapes != wanted:
            raise ValueError(f"{path} does not have the tensors of this model")
        for names in groups:
            built = modules(file, _prefix(names), [linears[name] for name in names])
            for name, module in zip(names, built, strict=True):
                model.set_submodule(name, module)
        parameters = {}
        for name in others:
            embedding = isinstance(model.get_submodule(name.rpartition(".")[0]), nn.Embedding)
            parameters[name] = file.get_tensor(name).to(torch.float32 if embedding else dtype)
        model.load_state_dict(parameters, assign=True)
    model.requires_grad_(False)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The file at `path`, of this version; FileNotFoundError or ValueError as in `read_int8`."""
    if not path.is_file():
        raise FileNotFoundError(path)
    try:
        with safe_open(path, "pt") as file:
            if file.metadata() != _METADATA:
                raise ValueError(f"{path} is no file of int8 weights of version {VERSION}")
            yield file
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    linears = linears_of(model)
    tensors = {name: t for name, t in model.state_dict().items() if name.rpartition(".")[0] not in linears}
    for names in input_groups(linears):
        weight, bias = stacked_int8([linears[name] for name in names])
        prefix = _prefix(names)
        tensors |= {prefix + _ROWS: weight.rows, prefix + _SCALES: weight.scales}
        if bias is not None:
            tensors[prefix + _BIAS] = bias
    return tensors


def _layout(names: tuple[str, ...], linears: dict[str, nn.Linear]) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    group = [linears[name] for name in names]
    outputs, prefix = sum(m.out_features for m in group), _prefix(names)
    layout: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
        prefix + _ROWS: (torch.int8, (outputs, group[0].in_features)),
        prefix + _SCALES: (torch.float32, (outputs,)),
    }
    if any(m.bias is not None for m in group):
        layout[prefix + _BIAS] = (torch.float32, (outputs,))
    return layout


def _prefix(names: tuple[str, ...]) -> str:
    """Such as `model.layers.0.self_attn.q_proj+k_proj+v_proj`."""
    return names[0] + "".join(f"+{name.rpartition('.')[2]}" for name in names[1:])
