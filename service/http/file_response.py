"""Serves immutable files in chunks, with strong ETags, 304 for unchanged content, and single byte ranges."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import anyio
from fastapi import Request
from fastapi.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from service.errors import ApiError

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
CHUNK_BYTES = 256 * 1024


@dataclass(frozen=True)
class Part:
    """The bytes from `start` to `stop` of an open file."""

    file: anyio.AsyncFile[bytes]
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


class PartsResponse(StreamingResponse):
    """Sends `parts` one after the other, and always closes their files, even when the client disconnects."""

    def __init__(self, parts: Sequence[bytes | Part], status: int, headers: Mapping[str, str], media_type: str) -> None:
        length = {"Content-Length": str(sum(map(len, parts)))}
        super().__init__(_chunks(parts), status, {**headers, **length}, media_type)
        self._files = [part.file for part in parts if isinstance(part, Part)]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the parts and always close their files."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            with anyio.CancelScope(shield=True):
                for file in self._files:
                    await file.aclose()


def etag_of(sha256: str) -> str:
    """The strong ETag of content with this sha256."""
    return f'"{sha256}"'


def not_modified(request: Request, etag: str) -> Response | None:
    """A 304 response if the client already has this content, else None."""
    given = request.headers.get("if-none-match", "")
    tags = {tag.strip().removeprefix("W/") for tag in given.split(",")}
    if etag in tags or "*" in tags:
        return Response(status_code=304, headers=_caching(etag))
    return None


async def send_file(
    request: Request, path: Path, *, size: int, sha256: str, media_type: str, filename: str
) -> Response:
    """Answer with the file at `path`, or with the requested range of it.

    Raises:
        FileNotFoundError: the file does not exist any more.
        ApiError: 416, the range is outside of the file.
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
    status = 200
    if part is not None:
        status, headers["Content-Range"] = 206, f"bytes {start}-{stop - 1}/{size}"
    if request.method == "HEAD":
        return head_only(stop - start, status, headers, media_type)
    # opened before the headers are sent, so that a later deletion does no harm
    return PartsResponse([Part(await anyio.open_file(path, "rb"), start, stop)], status, headers, media_type)


def head_only(length: int, status: int, headers: Mapping[str, str], media_type: str) -> Response:
    """The response to HEAD for content of `length` bytes."""
    return Response(None, status, {**headers, "Content-Length": str(length)}, media_type)


async def _chunks(parts: Sequence[bytes | Part]) -> AsyncIterator[bytes]:
    for part in parts:
        if isinstance(part, bytes):
            yield part
            continue
        start = part.start
        await part.file.seek(start)
        while start < part.stop:
            chunk = await part.file.read(min(CHUNK_BYTES, part.stop - start))
            if not chunk:
                raise OSError("the file is shorter than its record says")
            start += len(chunk)
            yield chunk


def _caching(etag: str) -> dict[str, str]:
    # private: content behind a key must not be in shared caches; no-cache: an adapter may be deleted
    return {"ETag": etag, "Cache-Control": "private, no-cache"}


def _requested_range(request: Request, etag: str, size: int) -> tuple[int, int] | None:
    """(start, stop) of a single range; None stands for the whole file.

    Malformed and multiple ranges are answered with the whole file, as RFC 9110 allows.
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
