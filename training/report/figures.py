"""The figures of the report, as SVG for the page and as PNG for documents.

In the SVG, all text and lines that are not data have the page's text colour, so that one drawing suits a light and a
dark page. Sizes are chosen for the width of a phone.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_INK = "#123457"
"""Placeholder for the page's text colour; no data has this colour."""
_STYLE: Any = {  # matplotlib types its settings by name
    "font.size": 9, "svg.fonttype": "none", "figure.facecolor": "none", "axes.facecolor": "none",
    "savefig.facecolor": "none", "legend.frameon": False, "axes.spines.top": False, "axes.spines.right": False,
    "text.color": _INK, "axes.labelcolor": _INK, "axes.edgecolor": _INK, "xtick.color": _INK, "ytick.color": _INK,
}  # fmt: skip
_WIDTH = 5.0
_MAX_LEGEND = 10
_FEW = 3
"""Up to this many curves, the legend fits between them."""
_PALETTE = (
    "#2f7ed8",
    "#e8731a",
    "#2ca25f",
    "#c23b5a",
    "#8a63c9",
    "#9c755f",
    "#d16ba5",
    "#7f8c8d",
    "#a7a200",
    "#17a9b8",
)

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Drawing:
    """One figure.

    Attributes:
        svg: an `<svg>` element for an HTML page, without width and height.
        png: the same on white, 200 dots per inch.
    """

    svg: str
    png: bytes


def line_chart(series: Mapping[str, Points], *, x: str, y: str, markers: bool = False) -> Drawing:
    """Curves such as losses over steps; up to ten get a legend, which is above the plot for more than three."""
    with mpl.rc_context(_STYLE):
        figure, axes = _figure(3.2)
        for number, (name, points) in enumerate(series.items()):
            columns = np.array(points, dtype=float).reshape(-1, 2)
            axes.plot(
                columns[:, 0], columns[:, 1], label=name, color=_colour(number), linewidth=1.2,
                marker="o" if markers or len(columns) == 1 else None, markersize=3,
            )  # fmt: skip
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        if 1 < len(series) <= _MAX_LEGEND:
            above: dict[str, Any] = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "ncols": 2}
            axes.legend(fontsize=8, **(above if len(series) > _FEW else {}))
        return _drawn(figure, "line" + "".join(series))


def scatter_map(places: Sequence[Sequence[float]], labels: Sequence[str], *, title: str) -> Drawing:
    """Points in two dimensions, coloured by label. Distances have no unit, so there are no ticks."""
    with mpl.rc_context(_STYLE):
        figure, axes = _figure(3.6)
        points = np.array(places, dtype=float)
        for number, label in enumerate(dict.fromkeys(labels)):
            chosen = [i for i, name in enumerate(labels) if name == label]
            shape = "osD^v"[number // len(_PALETTE) % 5]
            axes.scatter(points[chosen, 0], points[chosen, 1], s=22, label=label, color=_colour(number), marker=shape)
        axes.set_title(title, fontsize=10)
        axes.set_xticks([])
        axes.set_yticks([])
        if len(set(labels)) <= 3 * _MAX_LEGEND:
            axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0), borderaxespad=0)
        return _drawn(figure, "map" + title)


def heat_map(table: Mapping[str, Mapping[str, float]], *, x: str, title: str) -> Drawing:
    """A table of numbers as colours; missing numbers stay empty."""
    rows = list(table)
    columns = sorted({column for row in table.values() for column in row}, key=lambda c: (len(c), c))
    values = np.array([[table[row].get(column, np.nan) for column in columns] for row in rows])
    with mpl.rc_context(_STYLE):
        figure, axes = _figure(0.9 + 0.28 * len(rows))
        image = axes.imshow(values, aspect="auto", cmap="viridis")
        axes.set_yticks(range(len(rows)), rows)
        shown = range(0, len(columns), max(1, len(columns) // 12))
        axes.set_xticks(list(shown), [columns[i] for i in shown])
        axes.set_xlabel(x)
        axes.set_title(title, fontsize=10)
        figure.colorbar(image, ax=axes)
        return _drawn(figure, "heat" + title)


def bar_chart(
    groups: Mapping[str, Mapping[str, float]],
    errors: Mapping[str, Mapping[str, float | None]] | None = None,
    *,
    x: str,
    limits: tuple[float, float] | None = None,
) -> Drawing:
    """Horizontal bars: one group per name of the outer mapping, one bar per name of the inner mapping.

    Args:
        errors: lengths of the error bars, with the same keys; None for a bar without one.
        limits: ends of the axis.
    """
    names = list(groups)
    kinds = list(dict.fromkeys(kind for values in groups.values() for kind in values))
    height = 0.8 / max(1, len(kinds))
    with mpl.rc_context(_STYLE):
        figure, axes = _figure(0.8 + max(0.3, 0.13 * len(kinds) + 0.12) * len(names))
        for number, kind in enumerate(kinds):
            chosen = [(i, groups[name][kind]) for i, name in enumerate(names) if kind in groups[name]]
            spread = [(errors or {}).get(names[i], {}).get(kind) or 0.0 for i, _ in chosen]
            axes.barh(
                [i + number * height for i, _ in chosen], [value for _, value in chosen], height=height * 0.92,
                xerr=spread if any(spread) else None, label=kind, color=_colour(number), ecolor=_INK, capsize=2,
            )  # fmt: skip
        axes.set_yticks([i + height * (len(kinds) - 1) / 2 for i in range(len(names))], names, fontsize=8)
        axes.invert_yaxis()
        axes.set_xlabel(x)
        if limits is not None:
            axes.set_xlim(*limits)
        if len(kinds) > 1:
            # a legend of the axes would squeeze them if it is wider than they are
            figure.legend(fontsize=8, loc="outside upper center", ncols=min(3, len(kinds)))
        axes.margins(y=0.01)
        return _drawn(figure, "bars" + "".join(names))


def _figure(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots()


def _colour(number: int) -> str:
    return _PALETTE[number % len(_PALETTE)]


def _drawn(figure: Figure, salt: str) -> Drawing:
    svg, png = io.StringIO(), io.BytesIO()
    nothing: dict[str, Any] = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with mpl.rc_context({"svg.hashsalt": salt}):  # ids in the SVG are unique per figure, and reproducible
        figure.savefig(svg, format="svg", metadata=nothing)
    figure.savefig(png, format="png", dpi=200, facecolor="white")
    return Drawing(_inline(svg.getvalue()), png.getvalue())


def _inline(svg: str) -> str:
    """The bare `<svg>` element, without size, in the page's text colour."""
    element = svg[svg.index("<svg") :]
    head, tag, rest = element.partition(">")
    head = re.sub(r' (width|height)="[^"]*"', "", head)
    rest = re.sub(r' id="(?![a-z][0-9a-f]{8,})[^"]*"', "", rest)
    rest = re.sub(r"<metadata>.*?</metadata>", "", rest, flags=re.DOTALL)
    return (head + ' role="img"' + tag + rest).replace(_INK, "currentColor").strip()
