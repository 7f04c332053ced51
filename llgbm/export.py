"""From a request to an adapter's folder on disk."""

from __future__ import annotations

from pathlib import Path

from llgbm.adapters.peft_io import CONFIG_FILE, WEIGHTS_FILE, save_peft
from llgbm.errors import ConfigError
from llgbm.prompting import AdapterMaker, AdapterRequest, MadeAdapter


def export_adapter(maker: AdapterMaker, request: AdapterRequest, folder: Path) -> MadeAdapter:
    """Make an adapter and write it to `folder` in PEFT's format. The base itself is not needed.

    Args:
        maker: the generator and its text encoder.
        request: the task.
        folder: a new folder, an empty one, or that of an adapter, which is replaced.

    Raises:
        ConfigError: `folder` is a file, or holds other files, which would be lost.
        PretrainedNotFoundError: no source has the text encoder.
        OSError: the disk is full, or the place is not writable.
    """
    folder = folder.expanduser().resolve()
    require_replaceable(folder)
    made = maker.make([request])[0]
    save_peft(made.weights, folder, base_id=maker.checkpoint.manifest.base_id)
    return made


def require_replaceable(folder: Path) -> None:
    """Check that an adapter can be written to `folder` without loss.

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
