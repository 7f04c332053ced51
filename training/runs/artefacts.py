"""`artefacts.json` of a working directory: the command and settings that made each artefact in it.

    {"version": 1, "artefacts": {"boolq/boolq_000": {"kind": "adapter", "command": "teachers", ...}, ...}}

Keys are paths relative to the working directory. A newly made artefact replaces its entry. Several processes may write
at the same time: each takes the lock, reads the file, changes its entry and replaces the file.

The index of adapters, `manifest.json`, is another file of `llgbm.adapters.index`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

from llgbm.errors import CacheMismatchError
from llgbm.files.synced import replace_file

MANIFEST_FILE = "artefacts.json"
VERSION = 1


@dataclass(frozen=True)
class Artefact:
    """Provenance of one file or folder.

    Attributes:
        kind: for example `adapter`, `generator`, `report`.
        command: the command that made it.
        config: the full effective configuration of that command.
        config_digest: digest of the configuration.
        made_at: time in UTC, as ISO 8601.
        seconds: time it took.
        code_version: version of the package.
        git_commit: commit of the working tree, with `+changes` if it had uncommitted changes; None outside a clone.
        base_revision: revision of the base's weights; None without a base.
        data_digest: digest of the data; None without data.
        details: further values that the command records.
    """

    kind: str
    command: str
    config: Mapping[str, Any]
    config_digest: str
    made_at: str
    seconds: float
    code_version: str
    git_commit: str | None = None
    base_revision: str | None = None
    data_digest: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


def read_manifest(workdir: Path | str) -> dict[str, Artefact]:
    """The artefacts of a working directory by path, sorted by path; empty without a manifest.

    Raises:
        CacheMismatchError: the file is not a manifest of this version.
    """
    path = Path(workdir) / MANIFEST_FILE
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["version"] != VERSION:
            raise CacheMismatchError(f"{path}: has version {data['version']}, this code reads {VERSION}")
        return {name: Artefact(**entry) for name, entry in sorted(data["artefacts"].items())}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CacheMismatchError(
            f"{path}: is not a manifest of artefacts ({error}); move it away and run the command again"
        ) from error


def write_artefact(workdir: Path | str, path: Path | str, artefact: Artefact) -> None:
    """Write the entry of an artefact to the manifest of its working directory.

    Args:
        workdir: the working directory; created if needed.
        path: the artefact, inside the working directory or elsewhere.
        artefact: its entry.

    Raises:
        CacheMismatchError: the existing `artefacts.json` is not a manifest of this version.
    """
    workdir = Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    manifest = workdir / MANIFEST_FILE
    with FileLock(manifest.with_suffix(".json.lock")):
        entries = read_manifest(workdir)
        entries[relative_name(workdir, path)] = artefact
        data = {"version": VERSION, "artefacts": {name: asdict(entries[name]) for name in sorted(entries)}}
        replace_text(manifest, json.dumps(data, indent=1, ensure_ascii=False) + "\n")


def relative_name(workdir: Path, path: Path | str) -> str:
    """The key of a path in the manifest: relative to the working directory if inside it, else absolute."""
    full = Path(path).resolve()
    root = workdir.resolve()
    return (full.relative_to(root) if full.is_relative_to(root) else full).as_posix()


def set_aside(path: Path) -> Path:
    """Rename a file or folder to the first free name of `NAME.1`, `NAME.2`, ...; the number precedes a suffix."""
    number = 1
    while (aside := path.with_name(f"{path.stem}.{number}{path.suffix}")).exists():
        number += 1
    return path.rename(aside)


def replace_text(path: Path, text: str) -> None:
    """Write a file atomically: a reader sees the old or the new text, even after a power cut."""
    replace_file(path, text.encode())
