"""Takes the rows of a quality table that do not depend on the generator from an earlier table.

The baselines, a multi-task LoRA and a teacher for each task, cost more than the evaluation of a generator. A new
generator can therefore be compared with the baselines of an earlier table, measured on the same test rows.
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
"""Entries that must be equal in two tables for their rows to be comparable."""


SAME_IF_SAID = ("base_revision", "probes")
"""Entries that must be equal if the earlier table has them; older tables lack them."""


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
        path: file of the earlier table.
        here: the new table's values of `SAME` and `SAME_IF_SAID`.
        columns: the new table's tasks by column.
        num_rows: maximum number of test rows of a task.

    Raises:
        TaskFormatError: the file is not a result.
        ConfigError: the table has other rows, or none of the methods.
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
        """The rows to take, without the methods of `cells` (by method and task), which were measured again."""
        measured = {method for method, _ in cells}
        rows = {name: {m: r for m, r in of.items() if m not in measured} for name, of in self._rows.items()}
        methods = [m for m in INDEPENDENT if any(m in of for of in rows.values())]
        return Taken(rows, self._source | {"methods": methods})


@dataclass(frozen=True, eq=False)
class Taken:
    """The rows that a new table takes from an earlier one.

    Attributes:
        rows: by column and method, as in the earlier table.
        source: the earlier table's command, generator and own source of baselines, and the methods taken from it.
    """

    rows: Mapping[str, Mapping[str, Any]]
    source: Mapping[str, Any]
