"""Serves an immutable file with a strong ETag: 304 for who has it, and single byte ranges."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
from fastapi import Request
from fastapi.responses import Response, StreamingResponse

from service.errors import ApiError

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
_CHUNK = 256 * 1024


def etag_of(sha256: str) -> str:
    """The strong ETag of content with this sha256."""
    return f'"{sha256}"'


def not_modified(request: Request, etag: str) -> Response | None:
    """The 304, if the client has this content."""
    given = request.headers.get("if-none-match", "")
    tags = {tag.strip().removeprefix("W/") for tag in given.split(",")}
    if etag in tags or "*" in tags:
        return Response(status_code=304, headers=_caching(etag))
    return None


async def send_file(
    request: Request, path: Path, *, size: int, sha256: str, media_type: str, filename: str
) -> Response:
    """Answer with the file at `path`, or the part of it that the request asks for.

    Raises:
        FileNotFoundError: it is gone.
        ApiError: 416, no byte of the range exists.
    """
    etag = etag_of(sha256)
    if (unchanged := not_modified(request, etag)) is not None:
        return unchanged
    headers = {
        **_caching(etag),
        "Accept-Ranges": "bytes",
        "Content-Disposition": f'attachment; filename="{filename}"',
    }
    part = _requested_range(request, etag, size)
    start, stop = part or (0, size)
    headers["Content-Length"] = str(stop - start)
    if part is not None:
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
    if request.method == "HEAD":
        return Response(headers=headers, media_type=media_type, status_code=206 if part else 200)
    # opened before the head is sent: from here on a deletion cannot hurt
    file = await anyio.open_file(path, "rb")
    return StreamingResponse(
        _read(file, start, stop), status_code=206 if part else 200, headers=headers, media_type=media_type
    )


async def _read(file: anyio.AsyncFile[bytes], start: int, stop: int) -> AsyncIterator[bytes]:
    try:
        await file.seek(start)
        while start < stop:
            chunk = await file.read(min(_CHUNK, stop - start))
            if not chunk:
                raise OSError("the file is shorter than its record says")
            start += len(chunk)
            yield chunk
    finally:
        with anyio.CancelScope(shield=True):
            await file.aclose()


def _caching(etag: str) -> dict[str, str]:
    # private: behind a key it is not for shared caches; no-cache: an adapter may have been deleted
    return {"ETag": etag, "Cache-Control": "private, no-cache"}


def _requested_range(request: Request, etag: str, size: int) -> tuple[int, int] | None:
    """(start, stop) of a single range; None stands for the whole file.

    A malformed range, and several of them, are answered with the whole file, as RFC 9110 allows.
    """
    match = _RANGE.fullmatch(request.headers.get("range", "").replace(" ", ""))
    condition = request.headers.get("if-range")
    if match is None or not (match[1] or match[2]) or (condition is not None and condition != etag):
        return None
    if match[1]:
        start, stop = int(match[1]), min(int(match[2]) + 1, size) if match[2] else size
        if match[2] and int(match[2]) < start:
            return None
    else:
        start, stop = max(0, size - int(match[2])), size
    if start >= size or start >= stop:
        raise ApiError(
            416, f"the file has {size} bytes, so there is no such range", headers={"Content-Range": f"bytes */{size}"}
        )
    return start, stop
