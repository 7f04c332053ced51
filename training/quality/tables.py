"""`python -m training tables`: updates the result tables in Markdown documents.

A table's place is marked by `<!-- table: NAME -->` and a later `<!-- end -->`; only the lines between are replaced.
NAME is a key of `TABLES` or `failures`. Optional parts follow in this order: a group of tasks; `from` and the path of
another result than `quality`; `only` and the methods to show in this order, separated by semicolons:

    <!-- table: methods unseen_descriptions from results/quality.json only generated; teacher -->
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llgbm.errors import ConfigError
from training.quality.methods import FIXED_CONTEXTS
from training.runs.artefacts import replace_text
from training.runs.results import read_result

Result = Mapping[str, Any]

COLUMNS = {
    "unseen_descriptions": "training tasks, unseen description",
    "heldout_kinds": "kinds never seen",
    "trained_families": "families trained on, unseen description",
    "heldout_families": "families never seen",
}
"""Groups of tasks in the quality table, with their readable names."""
BY_TASK = (
    "base + description", "base + description + 3 examples", "multi-task LoRA + description", "teacher", "generated",
    "generated, wrong description", "generated + description",
)  # fmt: skip
"""Methods in the tables by task, if they were run."""
_SHORT = 60
_OPENING = "<!-- table: "
_PLACE = re.compile(
    r"(<!-- table: (\w+)(?: (?!from |only )(\w+))?(?: from (\S+))?(?: only ([^\n]+?))? -->\n)"
    r"(?:(?!<!-- table: ).)*?(<!-- end -->)",
    re.DOTALL,
)
_BY_METHOD = ("methods", "tasks", "kinds")
"""Tables with a row or a column for each method, for which `only` may select methods."""


@dataclass(frozen=True)
class Config:
    """Settings of the command."""

    quality: Path = Path("results/quality.json")
    """Quality table written by `evaluate`."""
    documents: tuple[Path, ...] = (Path("README.md"), Path("checkpoints/MODEL_CARD.md"))
    """Markdown documents to update."""


def run(config: Config) -> None:
    """Update every table of every document.

    Raises:
        ConfigError: a document has no marked table, or a table lacks its end, has an unknown name, or names a method
            or a group of tasks that the result does not have.
        TaskFormatError: a result is missing.
    """
    texts = {}
    for path in config.documents:
        before = path.read_text(encoding="utf-8")
        texts[path], places = _PLACE.subn(lambda found: filled(found, config), before)
        if not places:
            raise ConfigError(f"{path} has no place for a table; write <!-- table: methods --> and <!-- end -->")
        if places < before.count(_OPENING):
            wrong = before.count(_OPENING) - places
            raise ConfigError(f"{path} has {wrong} tables without a name, or without an <!-- end --> before the next")
    for path, text in texts.items():
        replace_text(path, text)
        print(path)


def filled(place: re.Match[str], config: Config) -> str:
    """A marked place with its new table."""
    opening, name, group, path, only, closing = place.groups()
    source = Path(path) if path else config.quality
    if only is not None and name not in _BY_METHOD:
        raise ConfigError(f"the table {name} has no choice of methods; `only` goes with {', '.join(_BY_METHOD)}")
    if name == "failures" and group in COLUMNS:
        lines = failures(_of_group(source, "failures", group))
    elif name in TABLES and (group in COLUMNS or group is None):
        shown = read_result(source)["columns"] if group is None else {group: _of_group(source, "columns", group)}
        lines = TABLES[name](shown if only is None else chosen(shown, only.split("; "), source))
    else:
        known = ", ".join((*TABLES, "failures"))
        raise ConfigError(f"unknown table {name} {group or ''}; tables are {known}, groups {', '.join(COLUMNS)}")
    return opening + "\n".join(["", *lines, "", closing])


def chosen(columns: Result, names: Sequence[str], source: Path) -> dict[str, Any]:
    """The columns with only these methods, in this order; a method that a column lacks counts as not run there.

    Raises:
        ConfigError: no column has one of the methods; the message lists those of `source`.
    """
    known = dict.fromkeys(name for column in columns.values() for name in column["methods"])
    if unknown := [name for name in names if name not in known]:
        raise ConfigError(f"{source} has no method {unknown[0]!r}; it has {'; '.join(known)}")
    return {
        group: column | {"methods": {name: column["methods"].get(name, {"accuracy": None}) for name in names}}
        for group, column in columns.items()
    }


def methods(columns: Result) -> list[str]:
    """Accuracy and interval of every method that was run. A single group also has other values that the result has."""
    names = dict.fromkeys(name for column in columns.values() for name in column["methods"])
    further = {"log_likelihood": "log-likelihood a token", "delta_cosine": "delta cosine with the teacher"}
    (first, *others) = columns.values()
    shown = [key for key in further if not others and any(key in row for row in first["methods"].values())]
    header = ["method", *(COLUMNS[group] for group in columns), *(further[key] for key in shown)]
    rows = []
    for name in names:
        found = [column["methods"].get(name, {"accuracy": None}) for column in columns.values()]
        if any(one["accuracy"] is not None for one in found):
            row = [name, *(_accuracy(one) for one in found)]
            row += [f"{found[0][key]:.2f}" if key == "log_likelihood" else _cosine(found[0]) for key in shown]
            rows.append(row)
    return table(header, rows)


def differences(columns: Result) -> list[str]:
    """Paired differences in points with their intervals, without those to the plain base (except gibberish)."""
    pairs = dict.fromkeys(
        (d["of"], d["minus"]) for column in columns.values() for d in column["differences"] if d["minus"] != "base"
    )
    rows = []
    for pair in [("generated, gibberish", "base"), *pairs]:
        found = [
            next((d for d in column["differences"] if (d["of"], d["minus"]) == pair), None)
            for column in columns.values()
        ]
        if any(found):
            rows.append([f"{pair[0]} − {pair[1]}", *("–" if d is None else _points(d) for d in found)])
    return table(["difference, in points", *(COLUMNS[group] for group in columns)], rows)


def auto(columns: Result) -> list[str]:
    """Accuracy of context `auto` and of each fixed choice, and the paired difference of `auto` to it in points."""
    rows = []
    for chosen_by, fixed in FIXED_CONTEXTS.items():
        for name in (chosen_by, *fixed):
            cells = []
            for column in columns.values():
                cell = _accuracy(column["methods"].get(name, {"accuracy": None}))
                pair = [d for d in column["differences"] if (d["of"], d["minus"]) == (chosen_by, name)]
                cells.append(f"{cell}; {_points(pair[0])}" if pair else cell)
            rows.append([name, *cells])
    return table(["context; `auto` minus it, in points", *(COLUMNS[group] for group in columns)], rows)


def tasks(columns: Result) -> list[str]:
    """Accuracy by task of the methods in `BY_TASK`."""
    lines: list[str] = []
    for column in columns.values():
        shown = [name for name in BY_TASK if column["methods"].get(name, {}).get("tasks")]
        by_method = [column["methods"][name]["tasks"] for name in shown]
        rows = [
            [task, *(_percent(scores[task]["accuracy"]) if task in scores else "–" for scores in by_method)]
            for task in sorted({task for scores in by_method for task in scores})
        ]
        lines += table(["task", *shown], rows)
    return lines


def kinds(columns: Result) -> list[str]:
    """Mean accuracy of every method by category of tasks, sorted by the first method, best first."""
    lines: list[str] = []
    for column in columns.values():
        methods = [name for name in column["methods"] if column["methods"][name].get("tasks")]
        members: dict[str, list[str]] = {}
        for task, category in column["categories"].items():
            members.setdefault(category, []).append(task)
        means = {
            category: [_mean(column["methods"][name]["tasks"], tasks) for name in methods]
            for category, tasks in members.items()
        }
        rows = [
            [
                category.replace("_", " "),
                str(len(members[category])),
                *("–" if m is None else _percent(m) for m in mean),
            ]
            for category, mean in sorted(means.items(), key=lambda kind: (-(kind[1][0] or 0), kind[0]))
        ]
        lines += table(["kind", "tasks", *methods], rows)
    return lines


def failures(found: Sequence[Result]) -> list[str]:
    """Input, expected and given answer, if all of them are short; one row per task."""
    rows = []
    for one in found:
        cells = [" ".join(one[key].split()).replace("|", "\\|") for key in ("input", "expected", "answer")]
        if all(len(cell) <= _SHORT for cell in cells):
            rows.append([one["task"], *cells])
    return table(["task", "input", "expected", "answer"], rows)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table."""
    return [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)]


def _of_group(source: Path, part: str, group: str) -> Any:
    """The entry of a group of tasks in a part of the result."""
    found = read_result(source)[part]
    if group not in found:
        raise ConfigError(f"{source} has no group {group} in its {part}; it has {', '.join(found)}")
    return found[group]


def _mean(scores: Result, tasks: Sequence[str]) -> float | None:
    found = [scores[task]["accuracy"] for task in tasks if task in scores]
    return sum(found) / len(found) if found else None


def _accuracy(method: Result) -> str:
    if method["accuracy"] is None:
        return "–"
    low, high = method["interval"]
    return f"{_percent(method['accuracy'])} ({_percent(low)} to {_percent(high)})"


def _cosine(method: Result) -> str:
    if "delta_cosine" not in method:
        return "–"
    low, high = method["delta_cosine_interval"]
    return f"{method['delta_cosine']:.2f} ({low:.2f} to {high:.2f})"


def _points(difference: Result) -> str:
    low, high = difference["interval"]
    return f"{100 * difference['mean']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


TABLES: Mapping[str, Callable[[Result], list[str]]] = {
    "methods": methods,
    "differences": differences,
    "auto": auto,
    "tasks": tasks,
    "kinds": kinds,
}
"""Tables of the quality result by name."""
