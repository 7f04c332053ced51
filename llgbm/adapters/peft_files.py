"""The two files of an adapter's folder as people have them: opened safely; other kinds of files are recognised.

A file is opened by its fixed name and not through a link, except one of a model hub's cache, where
`models--OWNER--NAME/snapshots/REVISION/FILE` is a link to `models--OWNER--NAME/blobs/HASH`.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from pathlib import Path

from llgbm.errors import AdapterFormatError

_CONFIG_FILE = "adapter_config.json"
_WEIGHTS_FILE = "adapter_model.safetensors"
_PICKLE_FILE = "adapter_model.bin"
_BLOB = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_FETCH_AGAIN = "copy or download it again (hf download OWNER/NAME --local-dir FOLDER)"

_OTHER_KINDS = (
    (
        re.compile(rb"version https://git-lfs\.github\.com/"),
        "is a git-lfs pointer in place of the file; run `git lfs pull` in the folder",
    ),
    (
        re.compile(rb"\s*<(!doctype|html)", re.IGNORECASE),
        f"is a web page, what a failed download leaves; {_FETCH_AGAIN}",
    ),
    (
        re.compile(rb"\x80[\x02-\x05](?!\x00{6})|PK\x03\x04"),
        "is a pickle or a zip, which is not read; save the adapter with safe_serialization=True",
    ),
    (re.compile(rb"GGUF"), "is a GGUF file, which is not read; take the adapter in PEFT's format"),
    (re.compile(rb"\x1f\x8b|\x28\xb5\x2f\xfd|\xfd7zXZ"), "is compressed; unpack it first (gunzip, unzstd or unxz)"),
)


def refuse_other_kinds(data: bytes, name: str) -> None:
    """Refuse the content of one of the two files if it is empty or a well-known other thing.

    Raises:
        AdapterFormatError: names it, and the command that mends it.
    """
    if not data:
        raise AdapterFormatError(f"{name} is empty, what a failed copy or download leaves; {_FETCH_AGAIN}")
    for start, what in _OTHER_KINDS:
        if start.match(data[:100]):
            raise AdapterFormatError(f"{name} {what}")


def read_adapter_file(handle: int, folder: Path, name: str, limit: int) -> bytes:
    """The content of one of the two files.

    Args:
        handle: the folder, open, so that both files are those of one folder.
        folder: its path.
        limit: bytes that it may have.

    Raises:
        AdapterFormatError: it is not there, not a plain file, or too large.
    """
    opened = _open(handle, folder, name)
    status = os.fstat(opened)
    if not stat.S_ISREG(status.st_mode):
        os.close(opened)
        raise AdapterFormatError(f"{name} is not a plain file")
    with os.fdopen(opened, "rb") as file:
        if status.st_size > limit:
            raise AdapterFormatError(f"{name} is larger than {limit} bytes")
        return file.read(status.st_size)  # bytes appended meanwhile are ignored


# not through a link, and not waiting for the writer of a pipe
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def _open(handle: int, folder: Path, name: str) -> int:
    try:
        return os.open(name, _FLAGS, dir_fd=handle)
    except FileNotFoundError:
        raise AdapterFormatError(f"{name} is missing{_hint(handle, name)}") from None
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise AdapterFormatError(f"{name} cannot be read: {error.strerror}") from error
    blob = _hub_blob(folder, os.readlink(name, dir_fd=handle))
    if blob is None:
        raise AdapterFormatError(f"{name} is a symbolic link out of its folder; copy it with its files (cp -rL)")
    try:
        return os.open(blob, _FLAGS)
    except OSError as error:
        raise AdapterFormatError(
            f"{name} is a link into the hub's cache, and its target cannot be read: {error.strerror}; "
            "download it again (hf download OWNER/NAME)"
        ) from error


def _hub_blob(folder: Path, link: str) -> Path | None:
    """The target of a link of a hub's cache, if `folder` is in a snapshot and the target a blob of the same model."""
    here = folder.resolve()
    target = Path(os.path.normpath(here / link))
    for parent in here.parents:
        if parent.name == "snapshots":
            same_model = target.parent == parent.parent / "blobs"
            return target if same_model and _BLOB.fullmatch(target.name) else None
    return None


def _hint(handle: int, name: str) -> str:
    """A hint about the other files in the folder, for the error of a missing file."""
    names = sorted(os.listdir(handle))  # a handle, not a path
    if name == _WEIGHTS_FILE and _PICKLE_FILE in names:
        return (
            f"; {_PICKLE_FILE} is a pickle, which can run code when it is read, so it is not read: "
            "save the adapter with safe_serialization=True"
        )
    if name == _WEIGHTS_FILE and (part := next((n for n in names if n.startswith("adapter_model-")), None)):
        return f"; {part} is one of several parts, save the adapter in one (max_shard_size)"
    if name == _CONFIG_FILE and "config.json" in names:
        return "; the folder holds a whole model, not an adapter"
    if name == _CONFIG_FILE:
        inner = [n for n in names[:100] if _is_file(handle, f"{n}/{_CONFIG_FILE}")]
        if inner:
            return f"; there is one in {inner[0]!r}, name that folder"
    return ""


def _is_file(handle: int, path: str) -> bool:
    try:
        return stat.S_ISREG(os.stat(path, dir_fd=handle).st_mode)
    except OSError:
        return False
