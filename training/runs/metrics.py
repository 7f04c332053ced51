"""Metrics as strict JSON lines, appended line by line and continued after a stop.

Each line is an object with `step`, `time` (seconds since the epoch) and the values. A number that JSON cannot represent
is written as the text "NaN", "Infinity" or "-Infinity"; `read_metrics` converts it back.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import IO, Any

from training.runs.artefacts import replace_text, set_aside

_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class MetricsFile:
    """An append-only file of metrics.

    The first line that a process writes decides which lines of an earlier run stay. Lines of earlier steps are kept,
    since the run resumes after them. Lines of this and later steps are dropped, since they are written again. If no
    line is kept, the old file is renamed to `NAME.N.jsonl`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[str] | None = None

    def append(self, step: int, values: dict[str, Any]) -> None:
        """Write one line and flush it."""
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _keep_earlier(self.path, step)
            self._file = self.path.open("a", encoding="utf-8")
        line = {"step": step, "time": round(time.time(), 3)} | {k: _jsonable(v) for k, v in values.items()}
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file; the next `append` opens it again as a new process would."""
        if self._file is not None:
            self._file.close()
            self._file = None


def read_metrics(path: Path | str) -> list[dict[str, Any]]:
    """The lines of a metrics file in order. A last line that was cut off by a crash is left out.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: a line before the last is not JSON.
    """
    lines = Path(path).read_text(encoding="utf-8").split("\n")
    records: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            if number == len(lines):
                break
            raise ValueError(f"{path}:{number}: not a line of metrics: {error}") from error
        records.append({k: _NOT_FINITE.get(v, v) if isinstance(v, str) else v for k, v in record.items()})
    return records


def read_steps(path: Path | str) -> list[dict[str, Any]]:
    """The lines of `read_metrics` from training steps, without those of checks."""
    return [line for line in read_metrics(path) if "loss" in line]


def _keep_earlier(path: Path, step: int) -> None:
    if not path.exists():
        return
    kept = [line for line in path.read_text(encoding="utf-8").split("\n") if _step_of(line) < step]
    if kept:
        replace_text(path, "".join(f"{line}\n" for line in kept))
    elif path.stat().st_size:
        set_aside(path)


def _step_of(line: str) -> float:
    """The step of a line; infinity for a damaged line, so that it is dropped."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def _jsonable(value: Any) -> Any:
    if hasattr(value, "item"):  # a torch or numpy number
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {key: _jsonable(item) for key, item in value.items()}
    return [_jsonable(item) for item in value] if isinstance(value, tuple | list) else value
