"""The report's sections on a finished generator: accuracy of every method, and reliability of the confidence.

As in `training.report.sections`, each function turns one kind of result into its section.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from training.report.figures import bar_chart, line_chart
from training.report.page import Picture, Section, Table, number
from training.report.sections import Result


def quality(result: Result) -> list[Section]:
    """All methods in one figure; then for each group of tasks a section with the table and accuracies by task."""
    sections = [_methods(result)]
    for name, column in result["columns"].items():
        rows = [
            (method, m["accuracy"], *(m["interval"] or (None, None)), m.get("log_likelihood"), m.get("delta_cosine"))
            for method, m in column["methods"].items()
        ]
        shown = [m for m in ("base", "generated", "teacher") if column["methods"].get(m, {}).get("tasks")]
        by_task: dict[str, dict[str, float]] = {}
        for method in shown:
            for task, score in column["methods"][method]["tasks"].items():
                by_task.setdefault(task, {})[method] = score["accuracy"]
        names = ("method", "accuracy", "low", "high", "log-likelihood", "delta cosine with the teacher")
        content: list[Table | Picture] = [Table(names, rows)]
        differences = [(d["of"], d["minus"], d["mean"], *d["interval"], d["num_tasks"]) for d in column["differences"]]
        header = ("method", "minus", "difference", "low", "high", "tasks")
        taken = result.get("baselines", {}).get("methods", [])
        paired = "Differences paired by task and row"
        if taken:
            paired += f"; those to methods of the earlier table ({', '.join(taken)}) paired by task only"
        content.append(Table(header, differences, paired))
        if by_task:
            drawing = bar_chart(by_task, x="accuracy", limits=(0.0, 1.0))
            content.append(Picture(f"accuracy-{name}", drawing, f"Accuracy by task: {', '.join(shown)}"))
        text = f"{column['num_tasks']} tasks, {result['metric']}; 95 % intervals over tasks and rows."
        sections.append(Section(f"Quality: {name.replace('_', ' ')}", text, (result["command"],), content))
    return sections


def _methods(result: Result) -> Section:
    means: dict[str, dict[str, float]] = {}
    spread: dict[str, dict[str, float | None]] = {}
    for name, column in result["columns"].items():
        for method, row in column["methods"].items():
            if row["accuracy"] is not None:
                low, high = row["interval"]
                means.setdefault(method, {})[name.replace("_", " ")] = row["accuracy"]
                spread.setdefault(method, {})[name.replace("_", " ")] = (high - low) / 2
    drawing = bar_chart(means, spread, x="accuracy", limits=(0.0, 1.0))
    picture = Picture("methods", drawing, "Accuracy of every method; error bars are half of the 95 % interval")
    return Section("Quality of all methods", result["metric"].capitalize() + ".", (result["command"],), [picture])


def confidence(result: Result) -> Section:
    """The reliability diagram: predicted confidence against measured accuracy."""
    found = result["reliability"]
    series = {
        "measured": [(b["confidence"], b["accuracy"]) for b in found["bins"]],
        "as promised": [(0.0, 0.0), (1.0, 1.0)],
    }
    drawing = line_chart(series, x="confidence", y="accuracy", markers=True)
    curve = zip(result["curve"]["similarity"], result["curve"]["confidence"], strict=True)
    content: list[Table | Picture] = [
        Picture("confidence", drawing, f"Reliability over {len(result['points'])} prompts"),
        Table(("confidence", "accuracy", "prompts"), [(b["confidence"], b["accuracy"], b["n"]) for b in found["bins"]]),
        Table(("similarity to the nearest training prompt", "confidence"), list(curve), "The curve"),
        Table(
            ("texts", "number", "mean probability", "taken for a task"),
            [(name, one["n"], one["mean"], one["taken_for_a_task"]) for name, one in result["detector"].items()],
            "Does a text ask for a task? The detector's predictions for unseen texts",
        ),
        *_contexts(result["accuracy_in_context"], result["context_choice"]),
    ]
    text = (
        "Each category is predicted by a curve that was fitted without it. "
        f"Expected calibration error {number(found['error'])}; {100 * result['warned']:.0f} % of the prompts lie below "
        f"the threshold of {result['curve']['threshold']}."
    )
    return Section("Confidence", text, (result["command"],), content)


def _contexts(measured: Mapping[str, Any], choice: Mapping[str, Any]) -> Iterator[Table | Picture]:
    """Accuracy by context over the adapter's scale, and the choices of `auto`, with and without examples."""
    for kind, groups in measured.items():
        name = kind.replace("_", " ")
        series = {
            f"{context}, {group} (n = {row['n']})": [(float(s), value) for s, value in scales.items()]
            for group, row in groups.items()
            for context, scales in row["accuracy"].items()
        }
        text = f"Contexts of adapters made {name}. auto: " + ", ".join(
            f"{100 * row['auto']:.1f} % ({group})" for group, row in groups.items()
        )
        drawing = line_chart(series, x="scale of the adapter", y="accuracy", markers=True)
        yield Picture(f"context_{kind}", drawing, text)
        rows = [
            (one["similarity"], place, setting["context"], setting["scale"], setting["accuracy"])
            for one in choice[kind]
            for place, setting in enumerate(one["settings"], 1)
        ]
        header = ("similarity from", "rank", "context", "scale", "accuracy")
        yield Table(header, rows, f"The ranking for requests {name}; auto takes the first")
