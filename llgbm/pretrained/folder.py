"""Checks of a folder in Hugging Face layout: is the model complete, and which weights are they?

Contract: both answers take milliseconds, from names, lengths, headers and samples. Nothing here imports torch or
transformers, and nothing reads gigabytes.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

SOURCE_FILE = "llgbm_source.json"
"""A file in folders made by LLGBM: the sources of the weights, by hash. It decides the revision."""

_COMMIT = re.compile(r"[0-9a-f]{40}")
_TOKENIZERS = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("vocab.txt",), ("tokenizer.model",))
_MAX_HEADER = 100_000_000
_SAMPLES = 64
_SAMPLE_BYTES = 4096


def folder_problem(folder: Path, *, weights: bool = True) -> str | None:
    """Why `folder` cannot be loaded as a model, or None when it can.

    It needs a config.json with a model type, a tokenizer, and safetensors files of the length in their headers, so a
    truncated download is found. Pickled weights (``pytorch_model.bin``) are not accepted, since reading them runs code.

    Args:
        weights: whether weights are required.
    """
    if not folder.is_dir():
        return f"{folder} is not a folder"
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return f"{folder} has no config.json"
    except (OSError, ValueError) as error:
        return f"{folder / 'config.json'} cannot be read: {error}"
    if not isinstance(config, dict) or "model_type" not in config:
        return f"{folder / 'config.json'} does not name a model_type"
    if not any(all((folder / file).is_file() for file in files) for files in _TOKENIZERS):
        return f"{folder} has no tokenizer (tokenizer.json, or vocab.json with merges.txt, or vocab.txt)"
    try:
        for path in _weight_files(folder) if weights else ():
            _safetensors_header(path)
    except (OSError, ValueError) as error:
        return str(error)
    return None


def pretrained_revision(path: Path, *, weights: bool = True) -> str:
    """16 hex digits that identify the weights in a resolved folder, for cache keys and manifests.

    Weights that LLGBM unpacked or converted: a digest of their sources, the same on every machine. A snapshot in the
    hub's cache: the start of its commit hash. Any other folder: a digest of config.json and of each weight file's name,
    length, header and 64 evenly spaced samples of 4 KiB, which distinguishes weights of equal shapes without reading
    all of them.

    Args:
        weights: False for a folder without weights: then the digest of other folders covers config.json only.

    Raises:
        ValueError: the folder is not a whole model; see `folder_problem`.
    """
    if (path / SOURCE_FILE).is_file():
        return manifest_revision(json.loads((path / SOURCE_FILE).read_text(encoding="utf-8")))
    if path.parent.name == "snapshots" and _COMMIT.fullmatch(path.name):
        return path.name[:16]
    problem = folder_problem(path, weights=weights)
    if problem is not None:
        raise ValueError(f"no revision of a folder that is not a whole model: {problem}")
    digest = hashlib.sha256((path / "config.json").read_bytes())
    for file in _weight_files(path) if weights else ():
        digest.update(f"\0{file.name}\0{file.stat().st_size}\0".encode())
        digest.update(_safetensors_header(file))
        with file.open("rb") as handle:
            for number in range(_SAMPLES):
                handle.seek(number * file.stat().st_size // _SAMPLES)
                digest.update(handle.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:16]


def manifest_revision(manifest: dict[str, Any]) -> str:
    """16 hex digits that change with the content of a `SOURCE_FILE`."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()[:16]


def _weight_files(folder: Path) -> list[Path]:
    """The model's safetensors files, sorted; ValueError when there are none or some are missing."""
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    if not index.is_file():
        raise ValueError(f"{folder} has no model.safetensors (weights in other formats are not read)")
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} has no weight_map") from error
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"{folder} misses {len(missing)} of {len(names)} weight files: {', '.join(missing[:3])}")
    return [folder / name for name in names]


def _safetensors_header(path: Path) -> bytes:
    """The header's bytes; ValueError when it is damaged or does not fit the file's length."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(size - 8, _MAX_HEADER):
            raise ValueError(f"{path} is not a safetensors file or was cut off ({size} bytes)")
        header = file.read(length)
    try:
        ends = [entry["data_offsets"][1] for name, entry in json.loads(header).items() if name != "__metadata__"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} has a damaged safetensors header") from error
    if 8 + length + max(ends, default=0) != size:
        raise ValueError(f"{path} has {size} bytes, not the length in its header: it was cut off or changed")
    return header
