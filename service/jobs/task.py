"""What a service and the worker of a job must agree about."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel

from service.jobs.database import FOLDER


class Task(BaseModel):
    """What the service tells its worker.

    Attributes:
        job: its id.
        base: hub id or folder of the base.
        settings: those of the service, without its secrets.
    """

    job: str
    base: str
    settings: dict[str, object]


def state_path(store_folder: Path, job: str) -> Path:
    """Where the state of a job's training is."""
    return store_folder / FOLDER / f"{job}.safetensors"


def reserve_path(store_folder: Path, job: str) -> Path:
    """A file that only takes room; a job that fails on a full disk deletes it to note the reason."""
    return store_folder / FOLDER / f"{job}.reserve"
