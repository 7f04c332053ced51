"""Result files: `{workdir}/results/{name}.json`, one for each command, with the command line that makes it again.

Every file is one JSON object with `command`, `made_at` and what the command found. The report and the documents
read them.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from llgbm.errors import TaskFormatError
from training.cli.config import config_paths, to_dict
from training.runs.artefacts import replace_text
from training.runs.fingerprint import Fingerprint
from training.runs.log import RunLog

FOLDER = "results"
NAMED = ("checkpoint", "output")
"""Values that a recorded command line names even if they are the default."""


def command_of(command: str, config: Any) -> str:
    """The command line that gives `config`: every value that differs from its default.

    The generator that is read and the file that is written are named in any case, since what stands at their default
    places changes. The words between are as `training.cli.command_line` reads them, quoted for a POSIX shell.
    """
    mine, default = to_dict(config), to_dict(type(config)())
    words = ["python", "-m", "training", command]
    for path in config_paths(type(config)):
        value = _at(mine, path)
        if value != _at(default, path) or (path in NAMED and value is not None):
            words.append(f"{path}={_text(value)}")
    return shlex.join(words)


def write_result(log: RunLog, name: str, config: Any, found: Mapping[str, Any], **record: Any) -> Path:
    """Write a result whole or not at all, and record it as an artefact.

    Args:
        log: of the command that found it.
        config: the command's configuration, for the command line.
        found: what was found, as JSON knows it; no NaN.
        record: more for `RunLog.record_artefact`, such as the base's revision.

    Returns:
        The file.
    """
    path = log.workdir / FOLDER / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    head = {"command": command_of(log.command, config), "made_at": datetime.now(UTC).isoformat(timespec="seconds")}
    replace_text(path, json.dumps(head | dict(found), indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    log.record_artefact(path, kind="result", **record)
    return path


def read_result(path: Path) -> dict[str, Any]:
    """One result.

    Raises:
        TaskFormatError: the file is missing, torn, or no result.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TaskFormatError(f"{path}: cannot be read as a result: {error}; make it again with its command") from error
    if not isinstance(data, dict) or not isinstance(data.get("command"), str):
        raise TaskFormatError(f"{path}: is not a result, which names the command that made it")
    return data


def read_results(workdir: Path) -> dict[str, dict[str, Any]]:
    """All results of a working directory by name, in order of name.

    Raises:
        TaskFormatError: a file is torn or no result.
    """
    return {path.stem: read_result(path) for path in sorted((workdir / FOLDER).glob("*.json"))}


def cached_result(path: Path, made_with: Fingerprint, make: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """What `make` gives, now or in an earlier run with the same fingerprint."""
    if path.exists():
        found: dict[str, Any] = json.loads(path.read_text("utf-8"))
        if found.get("fingerprint") == made_with.digest:
            return found
    found = {**make(), "fingerprint": made_with.digest}
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, json.dumps(found, indent=1, allow_nan=False) + "\n")
    return found


def _at(tree: Mapping[str, Any], path: str) -> Any:
    value: Any = tree
    for key in path.split("."):
        value = value[key]
    return value


def _text(value: Any) -> str:
    """As an override: lists and texts that could be read as something else in YAML's flow form."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return yaml.safe_dump(value, default_flow_style=True, width=10**9, allow_unicode=True).strip()
    if isinstance(value, str) and (value[:1] in "[{'\"" or value.lower() in ("", "none", "null", "~")):
        return yaml.safe_dump(value, default_style='"', width=10**9, allow_unicode=True).strip()
    return str(value)
