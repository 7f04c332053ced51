"""The task file format: what a task is, and strict reading and writing of its JSON files.

A task file is one JSON object named `{task_id}.json`:

    {"task_id", "category", "source", "licence",
     "descriptions": [...],                  what a user would write, the plainest first
     "metric": "exact_match" | "exact_match_any" | "log_likelihood",
     "label_set": [...] or null,
     "train": [{"input", "output"}, ...], "test": [...]}     rows may carry "alternatives": [...]

Alternatives count as right wherever a row carries them; the metric says in short whether to expect any.
The keys in `OPTIONAL_KEYS` are allowed and not read. All other keys are refused, and so is a task whose test
rows stand in its training rows: a `Task` that exists keeps every promise of its docstring.
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
"""One description in this many is held back from training."""

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, slots=True)
class Example:
    """One row: an input, the output to give, and other outputs that count as right too."""

    input: str
    output: str
    alternatives: tuple[str, ...] = ()

    @property
    def accepted(self) -> tuple[str, ...]:
        """Every output that counts as right, the one to train on first, none twice."""
        return tuple(dict.fromkeys((self.output, *self.alternatives)))


@dataclass(frozen=True)
class Task:
    """A task: what it is called in plain words, and rows to train on and to measure on.

    Attributes:
        task_id: letters, digits and `._-`; names the task's file and its folder in a working directory.
        category: the kind of task, such as `sentiment`.
        source: where the rows come from.
        licence: the licence of the rows.
        descriptions: wordings of the task, at least one, none twice, whatever its case and white space.
        metric: `exact_match`, or `exact_match_any` where many rows have alternatives; `log_likelihood` where more
            answers are right than any row could list.
        label_set: every output there is, for a task with labels; None for a task with free answers.
        train: rows to train on.
        test: rows to measure on; no input of them stands in `train`.
        more_descriptions: wordings to train on that are not in the task's file, see `with_more_wordings`; none of them
            is one of `descriptions`.
        held_back_by_others: wordings that are not trained on because another task holds them back, see
            `without_held_back`.
        family: tasks of one family share their inputs; None for a task without sisters.

    Raises:
        TaskFormatError: one of these promises does not hold; the message starts with the key.
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
                "and go on with letters, digits, '.', '_' or '-'"
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
                raise TaskFormatError(f"descriptions[{i}]: holds only white space")
            j = first_at.setdefault(folded(text), i)
            if j != i:
                raise TaskFormatError(
                    f"descriptions[{i}]: says the same as descriptions[{j}] ({text!r}); a wording that "
                    "stands twice could be trained on and counted as unseen"
                )

    def _check_rows(self) -> None:
        labels = None if self.label_set is None else frozenset(self.label_set)
        for key, rows in (("train", self.train), ("test", self.test)):
            for i, row in enumerate(rows):
                if not row.input.strip() or not row.output.strip():
                    raise TaskFormatError(f"{key}[{i}]: input and output must hold more than white space")
                if labels is not None and row.output not in labels:
                    raise TaskFormatError(f"{key}[{i}].output: {row.output!r} is not in label_set")
        shared = {row.input for row in self.train} & {row.input for row in self.test}
        if shared:
            raise TaskFormatError(
                f"test: {len(shared)} inputs stand in train too, for example {min(shared)!r}; "
                "take them out of one of the two, or accuracy counts what was learnt by heart"
            )

    @property
    def seen_descriptions(self) -> tuple[str, ...]:
        """The wordings to train on: all but the last quarter. Empty for a task with a single wording."""
        wordings = self.descriptions[: -self._num_unseen] + self.more_descriptions
        return tuple(text for text in wordings if text not in self.held_back_by_others)

    @property
    def seen_in_file(self) -> tuple[str, ...]:
        """Those of `seen_descriptions` that stand in the task's file, which come first."""
        return tuple(text for text in self.seen_descriptions if text in self.descriptions)

    @property
    def unseen_descriptions(self) -> tuple[str, ...]:
        """The wordings held back: the last quarter, rounded down, and at least one.

        The wording of a task that has only one is held back too. Such a task can be measured, but not trained
        on: a generator that saw the only wording could not be measured on an unseen one.
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


def load_task(path: Path | str) -> Task:
    """Read one task file.

    A description that stands twice in a file is kept once, at its first place.

    Raises:
        TaskFormatError: the file is not there, is not JSON or breaks the format; it names file and key.
    """
    path = Path(path)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TaskFormatError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise TaskFormatError(f"{path}: is not JSON in UTF-8: {error}") from error
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
        folder: holds `*.json` task files; subfolders are not read.
        ids: the tasks to read; None means all of them.

    Raises:
        TaskFormatError: no such folder, no task files in it, an unknown id, or a file that is refused.
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
    """The tasks with the wordings of a file to train on beside their own; those held back stay what they are.

    Args:
        path: a JSON object of lists of wordings by task id; tasks that are not asked for may be in it.

    Raises:
        TaskFormatError: the file is unreadable or of another form, or a wording is one of the task's own.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TaskFormatError(f"{path}: cannot be read as wordings: {error}") from error
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
    """The tasks, none of which is trained on a wording that another of them holds back, whatever case and white space.

    Two tasks may be called alike; each could still be measured only on what no task was trained on.
    """
    held_back = {folded(text) for task in tasks for text in task.unseen_descriptions}
    return [
        replace(task, held_back_by_others=tuple(text for text in task.seen_descriptions if folded(text) in held_back))
        for task in tasks
    ]


def save_task(folder: Path | str, task: Task) -> Path:
    """Write a task file, whole or not at all.

    Returns:
        The file, `{folder}/{task_id}.json`.

    Raises:
        TaskFormatError: there is a file of this name with another content; it is left as it is.
    """
    folder = Path(folder)
    path = folder / f"{task.task_id}.json"
    if path.exists() and load_task(path) != task:
        raise TaskFormatError(f"{path}: holds another task of this name; move it away, or write to another folder")
    folder.mkdir(parents=True, exist_ok=True)
    replace_text(path, json.dumps(task.to_dict(), ensure_ascii=False) + "\n")
    return path


def evenly(tasks: Sequence[Task], count: int) -> list[Task]:
    """At most `count` of the tasks, spread over all of them."""
    if count >= len(tasks):
        return list(tasks)
    return [tasks[i * (len(tasks) - 1) // max(1, count - 1)] for i in range(count)]


def tasks_digest(tasks: Sequence[Task]) -> str:
    """The first 16 hex digits of the sha256 of tasks with all rows; the order of the tasks does not matter."""
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
    """A wording without what makes it no other one: case and white space."""
    return " ".join(text.split()).casefold()


def unique_descriptions(texts: Sequence[str]) -> tuple[str, ...]:
    """The texts without those that differ from an earlier one only in case or white space."""
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
        raise TaskFormatError(f"{key}.{extra[0]}: unknown key; a row has input, output and maybe alternatives")
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
