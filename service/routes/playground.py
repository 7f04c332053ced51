"""The playground at `/` and its files under `/static/`, sent from memory with a strict content security policy.

The files in `service/static` with a known type are read once, at the first request. So no path of a request reaches the
disk, and a changed file needs a restart. Under the policy the page can load from and call this service only. It cannot
run inline scripts, and a browser with trusted types does not let it parse text as HTML.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import Response

from service.errors import ApiError
from service.http.file_response import etag_of, not_modified

STATIC = Path(__file__).resolve().parent.parent / "static"
PAGE = "index.html"
MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
_HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True)
class PageFile:
    """One file of the page."""

    content: bytes
    media_type: str
    etag: str


@cache
def page_files() -> dict[str, PageFile]:
    """The files by their path in `static`, such as `js/main.js`."""
    found = {}
    for path in sorted(STATIC.rglob("*")):
        media_type = MEDIA_TYPES.get(path.suffix)
        if media_type is not None and path.is_file():
            content = path.read_bytes()
            etag = etag_of(hashlib.sha256(content).hexdigest())
            found[path.relative_to(STATIC).as_posix()] = PageFile(content, media_type, etag)
    return found


@router.api_route("/", methods=["GET", "HEAD"], name="playground")
async def playground(request: Request) -> Response:
    """The page."""
    return _answer(request, PAGE)


@router.api_route("/static/{path:path}", methods=["GET", "HEAD"], name="playground_file")
async def playground_file(path: str, request: Request) -> Response:
    """A file of the page."""
    return _answer(request, path)


def _answer(request: Request, path: str) -> Response:
    file = page_files().get(path)
    if file is None:
        raise ApiError(404, "the playground has no such file; the page itself is at /")
    unchanged = not_modified(request, file.etag)
    if unchanged is not None:
        return unchanged
    # no-cache: the browser keeps the file and asks each time whether it is current, so a new version shows at once
    headers = {**_HEADERS, "ETag": file.etag, "Cache-Control": "no-cache"}
    return Response(file.content, headers=headers, media_type=file.media_type)
