"""Shared definitions of the service and the worker of a job."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel

from service.jobs.database import FOLDER


class Task(BaseModel):
    """The message of the service to its worker.

    Attributes:
        job: its id.
        base: hub id or folder of the base.
        settings: the service's settings, without secrets.
    """

    job: str
    base: str
    settings: dict[str, object]


def state_path(store_folder: Path, job: str) -> Path:
    """Path of the training state of a job."""
    return store_folder / FOLDER / f"{job}.safetensors"


def reserve_path(store_folder: Path, job: str) -> Path:
    """Path of a file that reserves disk space. A job that fails on a full disk deletes it to record the reason."""
    return store_folder / FOLDER / f"{job}.reserve"
