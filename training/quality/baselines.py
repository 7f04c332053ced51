"""Rows of a quality table that do not depend on the generator, taken from a table that was made before.

The rivals of a generator cost more than its evaluation: a multi-task LoRA, and a teacher for each task. Who has made
another generator, and not these, compares it with the ones of a table that is kept, on the same rows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llgbm.errors import ConfigError
from training.quality.methods import INDEPENDENT
from training.runs.results import read_result
from training.tasks.format import Task

SAME = ("base", "base_storage", "seeds", "metric")
"""What two tables must share for their rows to be comparable."""


SAME_IF_SAID = ("base_revision", "probes")
"""What they must share too, but older tables do not say."""


def row_digests(tasks: Sequence[Task], num_rows: int) -> dict[str, str]:
    """By task id, the first 16 hex digits of the sha256 of the test rows measured, inputs and answers."""
    rows = {task.task_id: [(e.input, e.accepted) for e in task.test[:num_rows]] for task in tasks}
    return {
        task: hashlib.sha256(json.dumps(found, ensure_ascii=False).encode()).hexdigest()[:16]
        for task, found in rows.items()
    }


class Baselines:
    """Methods of an earlier table.

    Args:
        path: of the table.
        here: what the table that is being made says of `SAME` and `SAME_IF_SAID`.
        columns: its tasks by column.
        num_rows: most test rows of a task.

    Raises:
        TaskFormatError: the file is no result.
        ConfigError: it is a table of other rows, or has none of the methods.
    """

    def __init__(
        self,
        path: Path,
        here: Mapping[str, Any],
        columns: Mapping[str, Sequence[Task]],
        num_rows: int,
    ) -> None:
        table = read_result(path)
        other = [name for name in SAME if table.get(name) != here[name]]
        other += [name for name in SAME_IF_SAID if name in table and table[name] != here[name]]
        if other:
            said = ", ".join(f"{name} is {table.get(name)} there and {here[name]} here" for name in other)
            raise ConfigError(f"{path} cannot be compared with this table: {said}")
        self._rows: dict[str, dict[str, dict[str, Any]]] = {}
        for name, tasks in columns.items():
            column = table.get("columns", {}).get(name, {})
            methods = column.get("methods", {})
            said, found = column.get("row_digests", {}), row_digests(tasks, num_rows)
            if changed := [task for task in found if said.get(task, found[task]) != found[task]]:
                raise ConfigError(f"{path} is of other rows of {', '.join(changed)}; make it again with its command")
            rows = {m: row for m, row in methods.items() if m in INDEPENDENT and row.get("tasks")}
            expected = {task.task_id: len(task.test[:num_rows]) for task in tasks}
            for method, row in rows.items():
                if any(expected.get(task) != cell["n"] for task, cell in row["tasks"].items()):
                    raise ConfigError(
                        f"{path} has {method!r} on other tasks or another number of rows of them in {name}; evaluate "
                        "the same ones, or make it again with its command"
                    )
            self._rows[name] = rows
        if not any(self._rows.values()):
            raise ConfigError(f"{path} has no method that could be taken from it; known are {', '.join(INDEPENDENT)}")
        self._source = {name: table[name] for name in ("command", "generator", "baselines") if name in table}

    def without(self, cells: Mapping[tuple[str, str], Mapping[str, Any]]) -> Taken:
        """What is taken beside the methods of `cells`, which were measured anew, by method and task."""
        measured = {method for method, _ in cells}
        rows = {name: {m: r for m, r in of.items() if m not in measured} for name, of in self._rows.items()}
        methods = [m for m in INDEPENDENT if any(m in of for of in rows.values())]
        return Taken(rows, self._source | {"methods": methods})


@dataclass(frozen=True, eq=False)
class Taken:
    """What a new table takes from an earlier one.

    Attributes:
        rows: by column and method, as they stand in the earlier table.
        source: the earlier table's command and generator, where that has its own from, and the methods that are taken.
    """

    rows: Mapping[str, Mapping[str, Any]]
    source: Mapping[str, Any]
