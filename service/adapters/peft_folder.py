"""Reads the PEFT folder that a client names, if the operator allows its place."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llgbm.adapters.peft_io import load_peft
from llgbm.errors import AdapterFormatError
from llgbm.lora import LoRAWeights
from service.errors import ApiError


def read_folder(path: str, roots: Sequence[Path]) -> tuple[LoRAWeights, str]:
    """The adapter in a folder below one of the roots, and the base id in its config. Blocks.

    Raises:
        ApiError: 403 outside of the roots, 404 without such a folder, 422 if it holds no valid adapter.
    """
    folder = _allowed(path, roots)
    try:
        return load_peft(folder)
    except AdapterFormatError as error:
        reason = str(error).removeprefix(f"{folder}: ")
        raise ApiError(422, f"not a valid adapter: {reason}", code="adapter_invalid", param="lora_path") from error


def _allowed(path: str, roots: Sequence[Path]) -> Path:
    if not roots:
        raise ApiError(403, "loading from folders is switched off; the operator can set LLGBM_ADAPTER_ROOTS")
    try:
        folder = Path(path).resolve()
        allowed = any(folder.is_relative_to(root.resolve()) for root in roots)
        present = allowed and folder.is_dir()
    except (OSError, ValueError, RuntimeError):
        allowed = present = False
    if not allowed:
        raise ApiError(403, "the folder is not under one of LLGBM_ADAPTER_ROOTS", param="lora_path")
    if not present:
        raise ApiError(404, "there is no such folder", param="lora_path")
    return folder
