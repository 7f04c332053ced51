"""The task file format: the `Task` class, and strict reading and writing of its JSON files.

A task file is one JSON object named `{task_id}.json`:

    {"task_id", "category", "source", "licence",
     "descriptions": [...],                  wordings a user would write, the plainest first
     "metric": "exact_match" | "exact_match_any" | "log_likelihood",
     "label_set": [...] or null,
     "train": [{"input", "output"}, ...], "test": [...]}     rows may carry "alternatives": [...]

Alternatives of a row always count as right; the metric only tells whether to expect any. The keys in `OPTIONAL_KEYS`
are allowed and ignored. All other keys are refused, and so is a task whose test inputs occur in its training rows.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from llgbm.errors import TaskFormatError
from training.runs.artefacts import replace_text

METRICS = ("exact_match", "exact_match_any", "log_likelihood")
REQUIRED_KEYS = (
    "task_id", "category", "source", "licence", "descriptions", "metric", "label_set", "train", "test",
)  # fmt: skip
OPTIONAL_KEYS = ("n_own_descriptions", "description_source", "note")
UNSEEN_SHARE = 4
"""One in this many descriptions is held back from training."""

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, slots=True)
class Example:
    """One row: an input, its output, and other outputs that also count as right."""

    input: str
    output: str
    alternatives: tuple[str, ...] = ()

    @property
    def accepted(self) -> tuple[str, ...]:
        """All outputs that count as right, without duplicates; the first one is trained on."""
        return tuple(dict.fromkeys((self.output, *self.alternatives)))


@dataclass(frozen=True)
class Task:
    """A task: its descriptions, training rows and test rows.

    Attributes:
        task_id: letters, digits and `._-`; names the task's file and its folder in a working directory.
        category: the kind of task, such as `sentiment`.
        source: origin of the rows.
        licence: licence of the rows.
        descriptions: wordings of the task; at least one, and all different in more than case and white space.
        metric: `exact_match`; `exact_match_any` if many rows have alternatives; `log_likelihood` if the right answers
            are too many to list.
        label_set: all possible outputs of a task with labels; None for free answers.
        train: training rows.
        test: test rows; their inputs do not occur in `train`.
        more_descriptions: additional wordings to train on, different from `descriptions`, see `with_more_wordings`.
        held_back_by_others: wordings that are not trained on because another task holds them back, see
            `without_held_back`.
        family: tasks of one family share their inputs; None for a task without family.

    Raises:
        TaskFormatError: one of these conditions does not hold; the message starts with the key.
    """

    task_id: str
    category: str
    source: str
    licence: str
    descriptions: tuple[str, ...]
    metric: str
    label_set: tuple[str, ...] | None
    train: tuple[Example, ...]
    test: tuple[Example, ...]
    more_descriptions: tuple[str, ...] = ()
    held_back_by_others: tuple[str, ...] = ()
    family: str | None = None

    def __post_init__(self) -> None:
        if not _ID.fullmatch(self.task_id):
            raise TaskFormatError(
                f"task_id: {self.task_id!r} names files: it must start with a letter or digit "
                "and continue with letters, digits, '.', '_' or '-'"
            )
        if self.metric not in METRICS:
            raise TaskFormatError(f"metric: {self.metric!r} is not one of {', '.join(METRICS)}")
        self._check_descriptions()
        self._check_rows()

    def _check_descriptions(self) -> None:
        if not self.descriptions:
            raise TaskFormatError("descriptions: the list is empty; a task needs at least one")
        first_at: dict[str, int] = {}
        for i, text in enumerate((*self.descriptions, *self.more_descriptions)):
            if not text.strip():
                raise TaskFormatError(f"descriptions[{i}]: contains only white space")
            j = first_at.setdefault(folded(text), i)
            if j != i:
                raise TaskFormatError(
                    f"descriptions[{i}]: is the same as descriptions[{j}] ({text!r}); a duplicate wording "
                    "could be trained on and counted as unseen"
                )

    def _check_rows(self) -> None:
        labels = None if self.label_set is None else frozenset(self.label_set)
        for key, rows in (("train", self.train), ("test", self.test)):
            for i, row in enumerate(rows):
                if not row.input.strip() or not row.output.strip():
                    raise TaskFormatError(f"{key}[{i}]: input and output must contain more than white space")
                if labels is not None and row.output not in labels:
                    raise TaskFormatError(f"{key}[{i}].output: {row.output!r} is not in label_set")
        shared = {row.input for row in self.train} & {row.input for row in self.test}
        if shared:
            raise TaskFormatError(
                f"test: {len(shared)} inputs also occur in train, for example {min(shared)!r}; "
                "remove them from one of the two, or accuracy would measure memorised rows"
            )

    @property
    def seen_descriptions(self) -> tuple[str, ...]:
        """The wordings to train on: all but the last quarter, and `more_descriptions`. Empty for a single wording."""
        wordings = self.descriptions[: -self._num_unseen] + self.more_descriptions
        return tuple(text for text in wordings if text not in self.held_back_by_others)

    @property
    def seen_in_file(self) -> tuple[str, ...]:
        """The `seen_descriptions` that are in the task's file; they come first."""
        return tuple(text for text in self.seen_descriptions if text in self.descriptions)

    @property
    def unseen_descriptions(self) -> tuple[str, ...]:
        """The held-back wordings: the last quarter, rounded down, and at least one.

        A single wording is held back too. Such a task can be measured but not trained on, since otherwise no unseen
        wording would be left to measure with.
        """
        return self.descriptions[-self._num_unseen :]

    @property
    def _num_unseen(self) -> int:
        return max(1, len(self.descriptions) // UNSEEN_SHARE)

    def to_dict(self) -> dict[str, Any]:
        """The content of the task's file."""
        return {
            "task_id": self.task_id,
            "category": self.category,
            "source": self.source,
            "licence": self.licence,
            "descriptions": list(self.descriptions),
            "metric": self.metric,
            "label_set": None if self.label_set is None else list(self.label_set),
            "train": [_row_dict(row) for row in self.train],
            "test": [_row_dict(row) for row in self.test],
        }


def read_json(path: Path) -> Any:
    """The JSON value in a file.

    Raises:
        TaskFormatError: the file cannot be read, or is not JSON in UTF-8.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TaskFormatError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise TaskFormatError(f"{path}: is not JSON in UTF-8: {error}") from error


def load_task(path: Path | str) -> Task:
    """Read one task file.

    Of duplicate descriptions, the first is kept.

    Raises:
        TaskFormatError: the file is missing, is not JSON or breaks the format; the message names file and key.
    """
    path = Path(path)
    data = read_json(path)
    try:
        task = _task_from_json(data)
        if task.task_id != path.stem:
            raise TaskFormatError(f"task_id: is {task.task_id!r}, but the file's name says {path.stem!r}")
    except TaskFormatError as error:
        raise TaskFormatError(f"{path}: {error}") from error.__cause__
    return task


def load_tasks(folder: Path | str, ids: Sequence[str] | None = None) -> list[Task]:
    """Read the task files of a folder, sorted by id.

    Args:
        folder: contains `*.json` task files; subfolders are not read.
        ids: the tasks to read; None reads all.

    Raises:
        TaskFormatError: the folder or an id does not exist, there are no task files, or a file is invalid.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise TaskFormatError(f"{folder}: no such folder; name a folder with task files (*.json)")
    paths = {path.stem: path for path in folder.glob("*.json")}
    if not paths:
        inside = ", ".join(sorted(p.name for p in folder.iterdir() if any(p.glob("*.json"))))
        hint = f"there are some in its subfolders: {inside}" if inside else "python -m training tasks can make some"
        raise TaskFormatError(f"{folder}: holds no task files (*.json); {hint}")
    wanted = sorted(paths) if ids is None else sorted(set(ids))
    unknown = [task_id for task_id in wanted if task_id not in paths]
    if unknown:
        raise TaskFormatError(f"{folder}: " + "; ".join(_unknown(task_id, list(paths)) for task_id in unknown))
    return [load_task(paths[task_id]) for task_id in wanted]


def with_more_wordings(tasks: Sequence[Task], path: Path) -> list[Task]:
    """The tasks with additional wordings to train on from a file; the held-back wordings do not change.

    Args:
        path: a JSON object of lists of wordings by task id; it may contain other tasks too.

    Raises:
        TaskFormatError: the file is unreadable or has another format, or a task has a wording already.
    """
    found = read_json(path)
    if not isinstance(found, dict) or not all(
        isinstance(texts, list) and all(isinstance(text, str) for text in texts) for texts in found.values()
    ):
        raise TaskFormatError(f"{path}: must be a JSON object of lists of wordings by task id")
    more = []
    for task in tasks:
        try:
            more.append(replace(task, more_descriptions=tuple(found.get(task.task_id, ()))))
        except TaskFormatError as error:
            raise TaskFormatError(f"{path}: {task.task_id}: {error}") from error
    return more


def without_held_back(tasks: Sequence[Task]) -> list[Task]:
    """The tasks without training wordings that another task holds back; case and white space are ignored.

    Two tasks may have the same wording. A held-back wording must not be trained on by any task.
    """
    held_back = {folded(text) for task in tasks for text in task.unseen_descriptions}
    return [
        replace(task, held_back_by_others=tuple(text for text in task.seen_descriptions if folded(text) in held_back))
        for task in tasks
    ]


def save_task(folder: Path | str, task: Task) -> Path:
    """Write a task file atomically.

    Returns:
        The file, `{folder}/{task_id}.json`.

    Raises:
        TaskFormatError: a file of this name has other content; it is not changed.
    """
    folder = Path(folder)
    path = folder / f"{task.task_id}.json"
    if path.exists() and load_task(path) != task:
        raise TaskFormatError(f"{path}: holds another task of this name; move it away, or write to another folder")
    folder.mkdir(parents=True, exist_ok=True)
    replace_text(path, json.dumps(task.to_dict(), ensure_ascii=False) + "\n")
    return path


def exact_match(tasks: Sequence[Task]) -> list[Task]:
    """The tasks whose metric is exact match."""
    return [task for task in tasks if task.metric != "log_likelihood"]


def evenly(tasks: Sequence[Task], count: int) -> list[Task]:
    """At most `count` of the tasks, evenly spaced."""
    if count >= len(tasks):
        return list(tasks)
    return [tasks[i * (len(tasks) - 1) // max(1, count - 1)] for i in range(count)]


def tasks_digest(tasks: Sequence[Task]) -> str:
    """The first 16 hex digits of the sha256 of tasks with all rows; independent of the tasks' order."""
    digest = hashlib.sha256()
    for task in sorted(tasks, key=lambda task: task.task_id):
        content = task.to_dict()
        for name in ("more_descriptions", "held_back_by_others"):
            if texts := getattr(task, name):
                content[name] = list(texts)
        digest.update(json.dumps(content, sort_keys=True, separators=(",", ":")).encode())
    return digest.hexdigest()[:16]


def _unknown(task_id: str, known: list[str]) -> str:
    close = get_close_matches(task_id, known, n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else f"it holds {len(known)} others"
    return f"no task {task_id!r}; {hint}"


def folded(text: str) -> str:
    """A wording with case and white space normalised, for comparison."""
    return " ".join(text.split()).casefold()


def unique_descriptions(texts: Sequence[str]) -> tuple[str, ...]:
    """The texts without duplicates; case and white space are ignored."""
    first: dict[str, str] = {}
    for text in texts:
        first.setdefault(folded(text), text)
    return tuple(first.values())


def _task_from_json(data: object) -> Task:
    record = _mapping(data, "the file")
    missing = [key for key in REQUIRED_KEYS if key not in record]
    if missing:
        raise TaskFormatError(f"{missing[0]}: the key is missing; a task has {', '.join(REQUIRED_KEYS)}")
    for key in record:
        if key not in REQUIRED_KEYS and key not in OPTIONAL_KEYS:
            close = get_close_matches(key, REQUIRED_KEYS, n=1)
            raise TaskFormatError(f"{key}: unknown key" + (f"; did you mean {close[0]}?" if close else ""))
    labels = record["label_set"]
    return Task(
        task_id=_text(record["task_id"], "task_id"),
        category=_text(record["category"], "category"),
        source=_text(record["source"], "source"),
        licence=_text(record["licence"], "licence"),
        descriptions=unique_descriptions(_texts(record["descriptions"], "descriptions")),
        metric=_text(record["metric"], "metric"),
        label_set=None if labels is None else _texts(labels, "label_set"),
        train=_rows(record["train"], "train"),
        test=_rows(record["test"], "test"),
    )


def _rows(value: object, key: str) -> tuple[Example, ...]:
    return tuple(_row(item, f"{key}[{i}]") for i, item in enumerate(_list(value, key)))


def _row(value: object, key: str) -> Example:
    row = _mapping(value, key)
    extra = sorted(set(row) - {"input", "output", "alternatives"})
    if extra:
        raise TaskFormatError(f"{key}.{extra[0]}: unknown key; a row has input, output and optionally alternatives")
    return Example(
        _text(row.get("input"), f"{key}.input"),
        _text(row.get("output"), f"{key}.output"),
        _texts(row.get("alternatives", []), f"{key}.alternatives"),
    )


def _row_dict(row: Example) -> dict[str, Any]:
    record: dict[str, Any] = {"input": row.input, "output": row.output}
    return record | {"alternatives": list(row.alternatives)} if row.alternatives else record


def _mapping(value: object, key: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise TaskFormatError(f"{key}: expected an object, got {type(value).__name__}")
    return value


def _list(value: object, key: str) -> list[Any]:
    if not isinstance(value, list):
        raise TaskFormatError(f"{key}: expected a list, got {type(value).__name__}")
    return value


def _texts(value: object, key: str) -> tuple[str, ...]:
    return tuple(_text(item, f"{key}[{i}]") for i, item in enumerate(_list(value, key)))


def _text(value: object, key: str) -> str:
    if not isinstance(value, str):
        raise TaskFormatError(f"{key}: expected a text, got {type(value).__name__}")
    return value
