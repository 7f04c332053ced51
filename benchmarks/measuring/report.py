"""The files that the benchmarks write: results.json, RESULTS.md and a plot of all ratios with a target."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

FOLDER = Path(__file__).resolve().parent.parent
RESULTS, TABLE, PLOT = FOLDER / "results.json", FOLDER / "RESULTS.md", FOLDER / "results.svg"

Results = dict[str, list[dict[str, Any]]]
"""benchmark -> its results as JSON values"""


def read_results(path: Path = RESULTS) -> Results:
    """Earlier results; empty if there is no file."""
    if not path.exists():
        return {}
    results: Results = {}
    for one in json.loads(path.read_text("utf-8")):
        results.setdefault(one["benchmark"], []).append(one)
    return results


def write_results(results: Results, *, order: Sequence[str], folder: Path = FOLDER) -> None:
    """Write all three files, with the benchmarks in `order`."""
    flat = [one for name in order for one in results.get(name, [])]
    (folder / RESULTS.name).write_text(json.dumps(flat, indent=1) + "\n", "utf-8")
    (folder / TABLE.name).write_text(as_markdown(flat), "utf-8")
    draw(flat).savefig(folder / PLOT.name)


def as_markdown(results: Sequence[dict[str, Any]]) -> str:
    """The results as a page: first those with a target, then the others."""
    lines = ["# Results", "", "Made by `make bench`. The top of each benchmark's file describes the measurement.", ""]
    lines += [f"![Each value over its target]({PLOT.name})", "", "## Against the targets", ""]
    lines += ["| | value | target | | arms: median (smallest to largest) | n |", "|---|---|---|---|---|---|"]
    lines += [_row(one) for one in results if one["target"] is not None]
    lines += ["", "## Without targets", "", "| | value | arms: median (smallest to largest) | n |", "|---|---|---|---|"]
    lines += [_row(one) for one in results if one["target"] is None]
    lines += ["", "## Notes", ""]
    lines += [f"- **{one['name']}**: {one['note']}" for one in results if one["note"]]
    for one in results:
        lines += [f"- **{one['name']}**: {arm} could not run: {why}" for arm, why in one["missing"].items()]
    lines += ["", "## Machines", ""]
    machines: dict[str, list[str]] = {}
    for one in results:
        text = ", ".join(f"{key} {value}" for key, value in one["machine"].items())
        names = machines.setdefault(text, [])
        if one["benchmark"] not in names:
            names.append(one["benchmark"])
    lines += [f"- {', '.join(names)}: {text}" for text, names in machines.items()]
    return "\n".join(lines) + "\n"


def _row(one: dict[str, Any]) -> str:
    arms = []
    for arm, median in one["arms"].items():
        spread = one["spread"].get(arm)
        arms.append(f"{arm} {median:g}" + (f" ({spread[0]:g} to {spread[1]:g})" if spread else ""))
    value = "not measured" if one["value"] is None else f"{one['value']:g} {one['unit']}"
    cells = [one["name"], value]
    if one["target"] is not None:
        cells += [f"{'≥' if one['higher_is_better'] else '≤'} {one['target']:g}", _verdict(one)]
    return "| " + " | ".join([*cells, f"{'; '.join(arms)} {one['arm_unit']}", str(one["n"])]) + " |"


def _verdict(one: dict[str, Any]) -> str:
    if one["value"] is None:
        return ""
    met = one["value"] >= one["target"] if one["higher_is_better"] else one["value"] <= one["target"]
    return "reached" if met else "missed"


def draw(results: Sequence[dict[str, Any]]) -> Figure:
    """A bar for each positive value: its ratio to the target, on a logarithmic axis."""
    shown = [one for one in results if one["value"] and one["target"] and one["value"] > 0 and one["target"] > 0]
    figure = Figure(figsize=(12, 0.9 + 0.34 * len(shown)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    better = [
        one["value"] / one["target"] if one["higher_is_better"] else one["target"] / one["value"] for one in shown
    ]
    colours = ["#2ca25f" if share >= 1 else "#c23b5a" for share in better]
    axes.barh([one["name"] for one in shown], [share - 1 for share in better], left=1, color=colours)
    axes.axvline(1, color="#333333", linewidth=1)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda share, _: f"{share:g}")
    axes.set_xlim(min([0.45, *better]) / 1.1, max([2.2, *better]) * 1.1)
    axes.set_xlabel("value over target, or target over value where less is better")
    axes.invert_yaxis()
    return figure
