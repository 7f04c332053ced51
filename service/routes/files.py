"""OpenAI's files: examples to learn from, as JSON lines."""

from __future__ import annotations

import asyncio
from typing import Annotated, Literal

from fastapi import APIRouter, File, Form, Query, Request, Response, UploadFile

from service.errors import ApiError
from service.jobs.files import FileRecord
from service.schemas.common import errors
from service.schemas.files import FileDeleted, FileList, FileObject
from service.state import Ready

router = APIRouter(prefix="/v1", tags=["fine-tuning"])
_FIELDS = frozenset({"file", "purpose"})


@router.post("/files", response_model=FileObject, responses=errors(400, 507), summary="Upload examples")
async def create_file(
    request: Request,
    services: Ready,
    file: Annotated[
        UploadFile,
        File(description='JSON lines: `{"messages": [...]}` with the answer last, or `{"input": ..., "output": ...}`.'),
    ],
    purpose: Annotated[Literal["fine-tune"], Form(description="The use of the file.")],
) -> FileObject:
    """Keep a file of examples until it is deleted. The error for a bad line has the line's number."""
    form = await request.form()
    if unknown := sorted(form.keys() - _FIELDS):
        raise ApiError(400, f"{unknown[0][:64]}: it is not known; leave it out", param=unknown[0][:64])
    if len(form.getlist("file")) > 1:
        raise ApiError(400, "file: there are several; upload one file in each request", param="file")
    content = await file.read()
    record = await asyncio.to_thread(services.jobs.files.add, (file.filename or "examples.jsonl")[:255], content)
    return _view(record)


@router.get("/files", response_model=FileList, responses=errors(400), summary="List files, the newest first")
async def list_files(
    services: Ready,
    limit: Annotated[int, Query(ge=1, le=10000, description="Files on a page.")] = 10000,
    after: Annotated[str | None, Query(max_length=64, description="`last_id` of the previous page.")] = None,
    order: Annotated[Literal["asc", "desc"], Query(description="By the time of upload.")] = "desc",
    purpose: Annotated[
        Literal["fine-tune", "fine-tune-results"] | None, Query(description="Only files with this purpose.")
    ] = None,
) -> FileList:
    """One page of files, without their content."""
    found, more = await asyncio.to_thread(
        services.jobs.files.page, limit, after, purpose=purpose, ascending=order == "asc"
    )
    data = [_view(record) for record in found]
    return FileList(
        data=data, has_more=more, first_id=data[0].id if data else None, last_id=data[-1].id if data else None
    )


@router.get("/files/{file_id}", response_model=FileObject, responses=errors(400, 404), summary="Show a file")
async def show_file(file_id: str, services: Ready) -> FileObject:
    """Show a file without its content."""
    return _view(await asyncio.to_thread(services.jobs.files.record, file_id))


@router.delete("/files/{file_id}", response_model=FileDeleted, responses=errors(400, 404, 507), summary="Delete a file")
async def delete_file(file_id: str, services: Ready) -> FileDeleted:
    """Delete a file and its examples. A running job continues without it; a queued job will fail."""
    await asyncio.to_thread(services.jobs.files.delete, file_id)
    return FileDeleted(id=file_id)


@router.get(
    "/files/{file_id}/content",
    response_class=Response,
    responses={
        200: {
            "description": "The file",
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        },
        **errors(400, 404),
    },
    summary="Download a file",
)
async def file_content(file_id: str, services: Ready) -> Response:
    """The content, as it was uploaded."""
    content = await asyncio.to_thread(services.jobs.files.content, file_id)
    return Response(content, media_type="application/octet-stream")


def _view(record: FileRecord) -> FileObject:
    return FileObject(
        id=record.id,
        bytes=record.bytes,
        created_at=int(record.created),
        filename=record.filename,
        purpose="fine-tune" if record.purpose == "fine-tune" else "fine-tune-results",
    )
