"""Models of the files routes. Fields and meanings are OpenAI's."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from service.schemas.common import example

_FILE: dict[str, Any] = {
    "id": "file-5a1f0c8e7d6b4f3a9c2d1e0f8a7b6c5d",
    "object": "file",
    "bytes": 1873,
    "created_at": 1763848800,
    "filename": "tickets.jsonl",
    "purpose": "fine-tune",
    "status": "processed",
    "expires_at": None,
}


class FileObject(BaseModel):
    """A file of examples, or with the losses of a job."""

    model_config = example(_FILE)
    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int = Field(description="Seconds since 1970.")
    filename: str
    purpose: Literal["fine-tune", "fine-tune-results"]
    status: Literal["processed"] = "processed"
    expires_at: None = None


class FileList(BaseModel):
    """One page of files."""

    model_config = example(
        {
            "object": "list",
            "data": [_FILE],
            "has_more": False,
            "first_id": _FILE["id"],
            "last_id": _FILE["id"],
        }
    )
    object: Literal["list"] = "list"
    data: list[FileObject]
    has_more: bool
    first_id: str | None
    last_id: str | None


class FileDeleted(BaseModel):
    """The id of the deleted file."""

    model_config = example({"id": _FILE["id"], "object": "file", "deleted": True})
    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True
