"""Loads the base of a generator, its shared adapter, and what makes adapters with it."""

from __future__ import annotations

from pathlib import Path

from llgbm.base import Base, load_base
from llgbm.checkpoint import Checkpoint, load_generator
from llgbm.linears.frozen_linear import Storage
from llgbm.lora import LoRAWeights
from llgbm.prompting import AdapterMaker


def base_of(checkpoint: Checkpoint, name: str, storage: Storage, device: str = "cpu") -> Base:
    """Load the base that a generator makes adapters for.

    Args:
        name: hub id or folder; empty uses the one in the manifest.

    Raises:
        CheckpointError: `name` is another base.
    """
    base = load_base(name or checkpoint.manifest.base_id, storage=storage, device=device)
    checkpoint.manifest.require_base(base.spec.base_id)
    return base


def maker_of(checkpoint: Checkpoint, text_encoder: str, base: str) -> AdapterMaker:
    """Makes adapters with a generator.

    Args:
        text_encoder: hub id or folder; empty uses the one in the manifest.
        base: hub id or folder, whose vocabulary is read if the generator reads answer words; empty as above.
    """
    return AdapterMaker(checkpoint, checkpoint.text_encoder(text_encoder), base=base)


def shared_adapter_for(folder: Path, base_id: str) -> LoRAWeights:
    """The shared adapter of the artefact in `folder`.

    Raises:
        CheckpointError: there is no readable artefact, or it is for another base.
    """
    checkpoint = load_generator(folder)
    checkpoint.manifest.require_base(base_id)
    return checkpoint.generator.shared_adapter()
