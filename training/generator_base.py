"""The base that a generator belongs to."""

from __future__ import annotations

from llgbm.base import Base, load_base
from llgbm.checkpoint import Checkpoint
from llgbm.frozen_linear import Storage


def base_of(checkpoint: Checkpoint, name: str, storage: Storage) -> Base:
    """Load the base that a generator makes adapters for.

    Args:
        name: hub id or folder; empty for the one that the manifest names.

    Raises:
        CheckpointError: `name` is another base.
    """
    base = load_base(name or checkpoint.manifest.base_id, storage=storage)
    checkpoint.manifest.require_base(base.spec.base_id)
    return base
