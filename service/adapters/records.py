"""The record of an adapter: all facts about it except its tensors."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from llgbm.config import ModelSpec
from llgbm.lora import LoRAWeights

CONFIG_FILE, WEIGHTS_FILE, RECORD_FILE = "adapter_config.json", "adapter_model.safetensors", "llgbm.json"
ADAPTER_NAME = re.compile(r"(?!(?:lora-[0-9a-f]{24}|auto)$)[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class FileInfo(BaseModel):
    """Size and hash of one file of an adapter."""

    model_config = ConfigDict(frozen=True)
    bytes: int
    sha256: str


class AdapterRecord(BaseModel):
    """All facts about an adapter except its tensors; the content of `llgbm.json`."""

    model_config = ConfigDict(frozen=True)
    id: str
    digest: str
    base: str
    rank: int
    alpha: float
    target_modules: tuple[str, ...]
    num_parameters: int
    created: float
    source: Literal["generated", "loaded", "composed", "refined"]
    descriptions: tuple[str, ...] = ()
    examples: tuple[tuple[str, str], ...] = ()
    scale: float = 1.0
    generator: str | None = None
    parts: tuple[tuple[str, float], ...] = ()
    start: str | None = None
    """Of a refined one: the adapter that training started from."""
    nearest: tuple[tuple[str, float], ...] = ()
    confidence: float | None = None
    scale_in_context: float | None = None
    warning: str | None = None
    norms: Mapping[str, tuple[float | None, ...]] = {}
    files: Mapping[str, FileInfo] = {}

    def content(self) -> bytes:
        """The bytes of its `llgbm.json`."""
        return self.model_dump_json(indent=1).encode() + b"\n"


def new_record(
    identity: str,
    weights: LoRAWeights,
    *,
    digest: str,
    norms: Mapping[str, float],
    base: ModelSpec,
    base_id: str,
    **known: Any,
) -> AdapterRecord:
    """The record of a new adapter, without its file facts, which are added when it is written.

    Args:
        digest: `llgbm.adapters.peft_io.content_digest` of the weights.
        norms: Frobenius norm of each module's product BA, by the module's name.
        base: shape of the base that this service has loaded.
        base_id: name of the base of the adapter.
        known: other fields of the record.
    """
    spec = weights.spec
    return AdapterRecord(
        id=identity,
        digest=digest,
        base=base_id,
        rank=spec.rank,
        alpha=spec.alpha,
        target_modules=spec.target_modules,
        num_parameters=spec.num_parameters,
        created=time.time(),
        norms=_by_target(norms, base),
        **known,
    )


def _by_target(norms: Mapping[str, float], base: ModelSpec) -> dict[str, tuple[float | None, ...]]:
    """Norms by module kind, with one value for each layer of the base; None for modules without an adapter."""
    layers = range(base.num_layers)
    targets = dict.fromkeys(name.rpartition(".")[2] for name in norms)
    return {target: tuple(norms.get(base.module_shape(layer, target).name) for layer in layers) for target in targets}


def parse_record(data: bytes, identity: str) -> AdapterRecord | None:
    """The record from the content of an `llgbm.json`; None if it is invalid or has another id."""
    try:
        record = AdapterRecord.model_validate_json(data)
    except ValidationError:
        return None
    return record if record.id == identity else None


def file_info(path: Path) -> FileInfo:
    """Size and hash of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileInfo(bytes=path.stat().st_size, sha256=digest)


def other_base(named: str, loaded: str) -> str | None:
    """A warning if an adapter names another base than the loaded one; only the last part of the names is compared.

    Adapters name their base by a hub id, or by a path on the machine that trained them.
    """
    if named.rstrip("/").rpartition("/")[2].lower() == loaded.rstrip("/").rpartition("/")[2].lower():
        return None
    return f"the adapter was made for {named}, and the base here is {loaded}"


def require_name(name: str) -> None:
    """Raise ValueError if `name` is not a valid adapter name."""
    if ADAPTER_NAME.fullmatch(name) is None:
        raise ValueError(f"{name!r} is not a valid name: 1 to 64 letters, digits, dots, dashes and underscores")
