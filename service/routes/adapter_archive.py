"""The zip of a PEFT folder, made while it is sent. Its length is known before, and it is never whole in memory.

It is not compressed, since tensors do not get smaller. The same adapter always gives the same bytes, and they are the
bytes of `zipfile`. `zipfile` itself cannot be used: it writes the checksum of a file into the header after the content,
and a stream cannot go back. The format is that of PKWARE's APPNOTE.TXT 6.3, sections 4.3.7, 4.3.12 and 4.3.16, for
files below 4 GiB.
"""

from __future__ import annotations

import asyncio
import hashlib
import struct
import zlib
from contextlib import AsyncExitStack
from pathlib import Path
from typing import IO

import anyio

from service.adapters.records import CONFIG_FILE, WEIGHTS_FILE, AdapterRecord
from service.http.file_response import CHUNK_BYTES, Part

_FILES = (CONFIG_FILE, WEIGHTS_FILE)
_LOCAL, _CENTRAL, _END = struct.Struct("<4s5H3L2H"), struct.Struct("<4s6H3L5H2L"), struct.Struct("<4s4H2LH")
_VERSION, _UNIX, _MODE = 20, 3 << 8, 0o644 << 16
_FIRST_OF_1980 = 1 << 5 | 1


def archive_sha256(record: AdapterRecord) -> str:
    """A hash that identifies the bytes of the archive, computed without them."""
    parts = [record.id, *(record.files[name].sha256 for name in _FILES)]
    return hashlib.sha256(" ".join(["zip-1", *parts]).encode()).hexdigest()


def archive_bytes(record: AdapterRecord) -> int:
    """Length of the archive in bytes."""
    paths = [_path(record, name) for name in _FILES]
    headers = sum(_LOCAL.size + _CENTRAL.size + 2 * len(path) for path in paths)
    return headers + _END.size + sum(record.files[name].bytes for name in _FILES)


async def archive_parts(folder: Path, record: AdapterRecord) -> list[bytes | Part]:
    """The parts of the archive for a `PartsResponse`, from the adapter's files in `folder`.

    The archive holds one folder, named by the adapter's id.

    Raises:
        FileNotFoundError: the adapter was deleted.
    """
    parts: list[bytes | Part] = []
    directory, position = b"", 0
    async with AsyncExitStack() as opened:
        for name in _FILES:
            file = await opened.enter_async_context(await anyio.open_file(folder / name, "rb"))
            path, size = _path(record, name), record.files[name].bytes
            checksum = await asyncio.to_thread(_crc32, file.wrapped, size)
            # version, flags, method, time, date, checksum, size twice, length of the path and of extra fields
            fields = (_VERSION, 0, 0, 0, _FIRST_OF_1980, checksum, size, size, len(path), 0)
            head = _LOCAL.pack(b"PK\3\4", *fields) + path
            parts += [head, Part(file, 0, size)]
            directory += _CENTRAL.pack(b"PK\1\2", _UNIX | _VERSION, *fields, 0, 0, 0, _MODE, position) + path
            position += len(head) + size
        opened.pop_all()
    count = len(_FILES)
    return [*parts, directory + _END.pack(b"PK\5\6", 0, 0, count, count, len(directory), position, 0)]


def _path(record: AdapterRecord, name: str) -> bytes:
    return f"{record.id}/{name}".encode()


def _crc32(file: IO[bytes], size: int) -> int:
    checksum = 0
    while chunk := file.read(min(CHUNK_BYTES, size)):
        checksum = zlib.crc32(chunk, checksum)
        size -= len(chunk)
    return checksum
