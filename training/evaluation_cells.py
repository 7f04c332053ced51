"""Finished cells of the quality table: one JSON line each, kept over stops, never taken for those of others."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.artefacts import replace_text


class Cells:
    """Cells by method and task.

    A line that a crash has cut off is dropped; its cell is computed again.

    Args:
        path: the file; made with the first cell.
        key: names all that decides a cell besides method and task; cells of another key stay in the file, unread.
    """

    def __init__(self, path: Path, key: str) -> None:
        self._path, self._key = path, key
        self._cells: dict[tuple[str, str], dict[str, Any]] = {}
        if not path.exists():
            return
        text = path.read_text("utf-8")
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            replace_text(path, whole)
        for line in whole.splitlines():
            cell = json.loads(line)
            if cell["key"] == key:
                self._cells[cell["method"], cell["task"]] = cell

    def get(self, method: str, task: str) -> dict[str, Any] | None:
        """The cell, or None if it was not computed."""
        return self._cells.get((method, task))

    def add(self, method: str, task: str, cell: Mapping[str, Any]) -> None:
        """Keep a cell."""
        full = {"key": self._key, "method": method, "task": task, **cell}
        self._cells[method, task] = full
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(full) + "\n")
