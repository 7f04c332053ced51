"""Result files: `{workdir}/results/{name}.json`, one for each command, with the command line that reproduces it.

Every file is one JSON object with `command`, `made_at` and the values of the result. The report and the documents are
made from them.
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
"""Settings that a recorded command line always names, even with their default value."""


def command_of(command: str, config: Any) -> str:
    """The command line for `config`: every value that differs from its default, quoted for a POSIX shell.

    The settings in `NAMED` are always included, because the files at their default paths change over time.
    """
    mine, default = to_dict(config), to_dict(type(config)())
    words = ["python", "-m", "training", command]
    for path in config_paths(type(config)):
        value = _at(mine, path)
        if value != _at(default, path) or (path in NAMED and value is not None):
            words.append(f"{path}={_text(value)}")
    return shlex.join(words)


def write_result(log: RunLog, name: str, config: Any, found: Mapping[str, Any], **record: Any) -> Path:
    """Write a result atomically, and record it as an artefact.

    Args:
        log: log of the command.
        config: the command's configuration, for the command line.
        found: the JSON values of the result, without NaN.
        record: further arguments of `RunLog.record_artefact`, such as the base's revision.

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
        TaskFormatError: the file is missing, damaged, or not a result.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TaskFormatError(f"{path}: cannot be read as a result: {error}; make it again with its command") from error
    if not isinstance(data, dict) or not isinstance(data.get("command"), str):
        raise TaskFormatError(f"{path}: is not a result, because it does not name the command that made it")
    return data


def read_results(workdir: Path) -> dict[str, dict[str, Any]]:
    """All results of a working directory by name, sorted by name.

    Raises:
        TaskFormatError: a file is damaged or not a result.
    """
    return {path.stem: read_result(path) for path in sorted((workdir / FOLDER).glob("*.json"))}


def cached_result(path: Path, made_with: Fingerprint, make: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """The result of `make`, from the file if it has the same fingerprint."""
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
    """A value as text for an override; lists and ambiguous texts are in YAML's flow style."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return yaml.safe_dump(value, default_flow_style=True, width=10**9, allow_unicode=True).strip()
    if isinstance(value, str) and (value[:1] in "[{'\"" or value.lower() in ("", "none", "null", "~")):
        return yaml.safe_dump(value, default_style='"', width=10**9, allow_unicode=True).strip()
    return str(value)
