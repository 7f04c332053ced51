"""Finished cells of the quality table: one JSON line each, kept over stops, never taken for those of others."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.runs.artefacts import replace_text


class Cells:
    """Cells by key, which names all that decides a cell: base, rows, adapter and what stands in the context.

    So a cell is measured once, whatever else changes: another generator needs no new cells of the plain base.

    Args:
        path: the file; made with the first cell. A line that a crash has cut off is dropped.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._cells: dict[str, dict[str, Any]] = {}
        if not path.exists():
            return
        text = path.read_text("utf-8")
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            replace_text(path, whole)
        for line in whole.splitlines():
            cell = json.loads(line)
            self._cells[cell["key"]] = cell

    def get(self, key: str) -> dict[str, Any] | None:
        """The cell, or None if it was not computed."""
        return self._cells.get(key)

    def __getitem__(self, key: str) -> dict[str, Any]:
        """A cell that was computed."""
        return self._cells[key]

    def add(self, key: str, cell: Mapping[str, Any]) -> dict[str, Any]:
        """Keep a cell; gives it back as `get` will."""
        full = {"key": key, **cell}
        self._cells[key] = full
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(full) + "\n")
        return full
