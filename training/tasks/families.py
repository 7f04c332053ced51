r"""Family files: several tasks on the same inputs, so that only the description determines the answer.

A family file is a text file `{family}.txt` with a head and rows, separated by a line `---`:

    family: parcel_updates
    category: logistics
    task: status
    labels: delayed, delivered             only if the answers are a closed set
    exact: no                              several answers are right: measured only by log-likelihood
    d: Name the status: delayed or delivered.
    d: ...
    task: town
    ...
    ---
    input || answer of the first task || answer of the second ...

A `-` instead of an answer excludes the row from that task; `\n` is a line break. The last `TEST_ROWS` rows are test
rows. Each task becomes a `Task` with the id `{family}.{task}`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from llgbm.errors import TaskFormatError
from training.tasks.format import Example, Task

TEST_ROWS = 8
"""Rows at the end of a family file that are never trained on."""
LICENCE = "Apache-2.0"
SOURCE = "written for LLGBM"

_SEPARATOR = " || "
_LEFT_OUT = "-"
_MIN_TRAIN_ROWS = 10


@dataclass
class _Head:
    """One task in the head of a file."""

    name: str
    labels: tuple[str, ...] | None = None
    exact: bool = True
    category: str | None = None
    descriptions: list[str] = field(default_factory=list)


def load_families(
    folder: Path | str, names: Sequence[str] | None = None, *, without: Collection[str] = ()
) -> list[Task]:
    """The tasks of all family files (`*.txt`) of a folder, sorted by family, in the order of each file.

    Args:
        folder: subfolders are not read.
        names: only these families; None for all.
        without: families to exclude; unknown names are ignored.

    Raises:
        TaskFormatError: the folder or a family does not exist, there are no family files, or a file is invalid.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise TaskFormatError(f"{folder}: no such folder; name a folder with family files (*.txt)")
    paths = {path.stem: path for path in sorted(folder.glob("*.txt"))}
    if not paths:
        raise TaskFormatError(f"{folder}: holds no family files (*.txt)")
    if unknown := [name for name in names or () if name not in paths]:
        raise TaskFormatError(f"{folder}: no family {unknown[0]!r}; it holds {len(paths)} others")
    wanted = paths if names is None else sorted(set(names))
    return [task for name in wanted if name not in without for task in load_family(paths[name])]


def load_family(path: Path | str) -> list[Task]:
    """The tasks of one family file.

    Raises:
        TaskFormatError: the file cannot be read or breaks the format; the message names the file and the line or task.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TaskFormatError(f"{path}: cannot be read as text in UTF-8: {error}") from error
    try:
        return list(_tasks(text, path.stem))
    except TaskFormatError as error:
        raise TaskFormatError(f"{path}: {error}") from error.__cause__


def _tasks(text: str, stem: str) -> Iterator[Task]:
    above, separator, below = text.partition("\n---\n")
    if not separator:
        raise TaskFormatError("has no line '---' between its head and its rows")
    family, category, heads = _read_head(above)
    if family != stem:
        raise TaskFormatError(f"family: is {family!r}, but the file's name says {stem!r}")
    rows = list(_read_rows(below, len(heads), first_line=above.count("\n") + 3))
    inputs = Counter(row[0] for row in rows)
    if repeated := [text for text, count in inputs.items() if count > 1]:
        raise TaskFormatError(f"rows: duplicate input {repeated[0][:60]!r}")
    for column, head in enumerate(heads, start=1):
        train, test = (
            tuple(Example(row[0], row[column]) for row in part if row[column] != _LEFT_OUT)
            for part in (rows[:-TEST_ROWS], rows[-TEST_ROWS:])
        )
        if len(train) < _MIN_TRAIN_ROWS:
            raise TaskFormatError(f"{head.name}: {len(train)} training rows; a task needs {_MIN_TRAIN_ROWS}")
        try:
            yield Task(
                task_id=f"{family}.{head.name}",
                category=head.category or category,
                source=SOURCE,
                licence=LICENCE,
                descriptions=tuple(head.descriptions),
                metric="exact_match" if head.exact else "log_likelihood",
                label_set=head.labels,
                train=train,
                test=test,
                family=family,
            )
        except TaskFormatError as error:
            raise TaskFormatError(f"{head.name}: {error}") from error.__cause__


def _read_head(text: str) -> tuple[str, str, list[_Head]]:
    """Family, category and tasks of a head."""
    named: dict[str, str] = {}
    heads: list[_Head] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        key, separator, value = (part.strip() for part in line.partition(":"))
        if not separator or not value:
            raise TaskFormatError(f"line {number}: {line[:60]!r} is not 'key: value'")
        if key == "task":
            if any(head.name == value for head in heads):
                raise TaskFormatError(f"line {number}: there are two tasks called {value!r}")
            heads.append(_Head(value))
        elif not heads and key in ("family", "category"):
            named[key] = value
        elif heads and key == "category":
            heads[-1].category = value
        elif heads and key == "labels":
            heads[-1].labels = tuple(label.strip() for label in value.split(","))
        elif heads and key == "exact" and value in ("yes", "no"):
            heads[-1].exact = value == "yes"
        elif heads and key == "d":
            heads[-1].descriptions.append(value)
        else:
            raise TaskFormatError(
                f"line {number}: {key!r} does not belong there; a head has family, category, then tasks, "
                "each with d and optionally labels, category, exact (yes or no)"
            )
    if missing := [key for key in ("family", "category") if key not in named]:
        raise TaskFormatError(f"{missing[0]}: the line is missing")
    if not heads:
        raise TaskFormatError("task: the family has none")
    return named["family"], named["category"], heads


def _read_rows(text: str, num_tasks: int, *, first_line: int) -> Iterator[list[str]]:
    """The cells of each row: the input, then an answer for every task."""
    for number, line in enumerate(text.split("\n"), start=first_line):
        if not line.strip():
            continue
        cells = [cell.strip() for cell in line.split(_SEPARATOR)]
        if len(cells) != num_tasks + 1 or not all(cells):
            raise TaskFormatError(
                f"line {number}: needs an input and {num_tasks} answers, separated by ' || ', none empty: {line[:60]!r}"
            )
        yield [cell.replace("\\n", "\n") for cell in cells]
