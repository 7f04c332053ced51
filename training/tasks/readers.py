"""Readers of tasks in other formats: the JSON lists of the founding paper, and data sets of the model hub.

A founding list is `[{"prompt", "response", "system"}, ...]`; `system` is optional. A hub data set is read through the
`datasets` library, an extra of this package. A `HubTask` names its columns.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llgbm.errors import ConfigError, TaskFormatError
from training.tasks.format import Example, Task, read_json, unique_descriptions

MAX_TRAIN_ROWS = 1000
MAX_TEST_ROWS = 300
FOUNDING_TEST_SHARE = 0.2
"""Fraction of a founding list's different prompts, chosen by their hash, whose rows are test rows."""
_LETTERS = "ABCDEFGHIJ"


@dataclass(frozen=True)
class HubTask:
    """Mapping of a hub data set to a task."""

    dataset: str
    """Id of the data set, such as `google/boolq`."""
    input: str
    """Template of the input, with columns in braces, such as `{passage}\\n{question}?`."""
    output: str
    """Column of the output."""
    descriptions: tuple[str, ...]
    """Wordings of the task."""
    category: str
    """Category of the task."""
    licence: str
    """Licence of the data."""
    config: str | None = None
    """Configuration of the data set, if it has several."""
    train_split: str = "train"
    """Split of the training rows."""
    test_split: str = "test"
    """Split of the test rows."""
    labels: dict[str, str] = field(default_factory=dict)
    """Answer for each value of the output column; empty uses the value itself."""
    output_after: str = ""
    """The answer is the part of the output column after this text."""
    options: str = ""
    """Column with lists `text` and `label`: the options are added to the input, and the answer is a letter."""


HUB_TASKS: dict[str, HubTask] = {
    "arc_e": HubTask(
        dataset="allenai/ai2_arc",
        config="ARC-Easy",
        input="{question}",
        options="choices",
        output="answerKey",
        category="multiple_choice_qa",
        licence="CC-BY-SA-4.0",
        descriptions=(
            "Answer the science question with the letter of the right option.",
            "Read a question from a school science exam and choose the correct answer. Reply with its letter only.",
            "Pick the option that answers the question and give just its letter.",
            "Which option is right? Reply with one letter.",
            "Science quiz: write the letter of the correct choice.",
        ),
    ),
    "boolq": HubTask(
        dataset="google/boolq",
        input="{passage}\n{question}?",
        output="answer",
        test_split="validation",
        labels={"True": "yes", "False": "no"},
        category="reading_comprehension",
        licence="CC-BY-SA-3.0",
        descriptions=(
            "Read the passage and answer the question with yes or no.",
            "Answer yes or no, judging by the text above the question.",
            "Decide from the passage whether the answer to the question is yes or no.",
            "You get a paragraph and a yes-no question about it. Reply yes or no.",
            "Does the passage say so? yes/no",
        ),
    ),
    "gsm8k": HubTask(
        dataset="openai/gsm8k",
        config="main",
        input="{question}",
        output="answer",
        output_after="####",
        category="math_word_problem",
        licence="MIT",
        descriptions=(
            "Solve the word problem and give the final number only.",
            "Work out the answer to the arithmetic problem. Reply with the number and nothing else.",
            "Read the problem and compute the result; write it in digits.",
            "What number answers this maths problem?",
            "Maths word problem: output the result as a number.",
        ),
    ),
}
"""Known hub data sets by name."""


def read_founding_list(path: Path | str) -> Task:
    """Read a founding list as a task: its id is the file's name without `_train`, its wordings are the `system` texts.

    Args:
        path: the JSON file, such as `data/ARC-e_train.json`.

    Raises:
        TaskFormatError: the file is not such a list, or has no description; the message names file and row.
    """
    path = Path(path)
    rows, systems = _founding_rows(path)
    wordings = unique_descriptions(systems)
    if not wordings:
        raise TaskFormatError(f'{path}: no row has a system text; add "system", a wording of the task, to some of them')
    train, test = split_rows(rows, FOUNDING_TEST_SHARE)
    name = path.stem.removesuffix("_train")
    try:
        return Task(name, "founding", path.name, "unknown", wordings, "exact_match", None, train, test)
    except TaskFormatError as error:
        raise TaskFormatError(f"{path}: {error}") from error


def read_hub(name: str, task: HubTask | None = None) -> Task:
    """Read a hub data set as a task; needs the `datasets` library and, the first time, the network.

    Args:
        name: the id of the task.
        task: the mapping; None uses the entry of `HUB_TASKS`.

    Raises:
        ConfigError: the name is unknown, or the library is not installed.
        TaskFormatError: the data set cannot be fetched, or lacks a column.
    """
    if task is None and name not in HUB_TASKS:
        raise ConfigError(f"no hub data set is known as {name!r}; known are {', '.join(HUB_TASKS)}")
    source = task or HUB_TASKS[name]
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ConfigError(
            f"reading {source.dataset} needs the datasets library: pip install -e '.[datasets]', "
            "or put task files into a folder"
        ) from error
    splits: list[Iterable[Mapping[str, Any]]] = []
    for split in (source.train_split, source.test_split):
        try:
            splits.append(load_dataset(source.dataset, source.config, split=split))
        except Exception as error:  # the exception types vary between versions of the library
            raise TaskFormatError(
                f"{source.dataset}, split {split}, cannot be read: {error}; check the network and the name"
            ) from error
    return hub_task(name, source, *splits)


def hub_task(name: str, source: HubTask, train: Iterable[Mapping[str, Any]], test: Iterable[Mapping[str, Any]]) -> Task:
    """Make a task from the records of two splits.

    At most 1000 training and 300 test rows are kept, those whose inputs have the smallest hashes. A test row whose
    input occurs in the kept training rows is left out.

    Raises:
        TaskFormatError: a record lacks a column, or has an answer that is not in `labels`.
    """
    train_rows = _smallest([_hub_row(source, record) for record in train], MAX_TRAIN_ROWS, ())
    test_rows = _smallest([_hub_row(source, record) for record in test], MAX_TEST_ROWS, train_rows)
    labels = tuple(dict.fromkeys(source.labels.values())) or None
    where = f"hub data set {source.dataset}" + (f", {source.config}" if source.config else "")
    return Task(
        name,
        source.category,
        where,
        source.licence,
        unique_descriptions(source.descriptions),
        "exact_match",
        labels,
        train_rows,
        test_rows,
    )


def split_rows(rows: Sequence[Example], test_share: float) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Split rows into training and test rows, each in the given order.

    The inputs with the smallest hashes are test inputs. So each input is on one side only, and adding rows moves few.
    """
    inputs = sorted({row.input for row in rows}, key=_hash)
    held_out = set(inputs[: round(test_share * len(inputs))])
    return (
        tuple(row for row in rows if row.input not in held_out),
        tuple(row for row in rows if row.input in held_out),
    )


def _founding_rows(path: Path) -> tuple[list[Example], list[str]]:
    data = read_json(path)
    if not isinstance(data, list) or not data:
        raise TaskFormatError(f"{path}: expected a list of objects with prompt and response")
    rows: list[Example] = []
    systems: list[str] = []
    for i, record in enumerate(data):
        if not isinstance(record, dict):
            raise TaskFormatError(f"{path}: [{i}]: expected an object, got {type(record).__name__}")
        for key in ("prompt", "response", *(("system",) if "system" in record else ())):
            if not isinstance(record.get(key), str):
                raise TaskFormatError(f"{path}: [{i}].{key}: expected a text, got {record.get(key)!r:.40}")
        rows.append(Example(record["prompt"], record["response"]))
        if record.get("system", "").strip():
            systems.append(record["system"])
    return rows, systems


def _hub_row(source: HubTask, record: Mapping[str, Any]) -> Example:
    try:
        given = source.input.format(**record).strip()
        answer = str(record[source.output])
        if source.options:
            texts, marks = record[source.options]["text"], [str(m) for m in record[source.options]["label"]]
            given += "".join(f"\n{_LETTERS[i]}: {text}" for i, text in enumerate(texts))
            answer = _LETTERS[marks.index(answer)]
        if source.output_after:
            answer = answer.split(source.output_after, 1)[1]
        return Example(given, source.labels[answer] if source.labels else answer.strip())
    except (KeyError, IndexError, ValueError, TypeError) as error:
        raise TaskFormatError(
            f"{source.dataset}: a record does not fit ({error!r}); its columns are {', '.join(record)}"
        ) from error


def _smallest(rows: Sequence[Example], count: int, without: Sequence[Example]) -> tuple[Example, ...]:
    taken = {row.input for row in without}
    unique = {row.input: row for row in rows if row.input not in taken}
    return tuple(unique[text] for text in sorted(unique, key=_hash)[:count])


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
