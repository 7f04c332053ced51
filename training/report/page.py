"""The report as one HTML file: no network, scripts or external fonts; readable on a phone; light or dark."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from training.report.figures import Drawing

_STYLE = """ :root { color-scheme: light dark; --ink: #1b1f24; --paper: #ffffff; --soft: #f3f4f6; --line: #d5d9de;
--accent: #2f6fc4; } @media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8ea; --paper: #14171a; --soft: #1f2428; --line: #394047; --accent: #7fb0f0; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 46rem; padding: 1rem; font: 16px/1.5 system-ui, sans-serif; color: var(--ink);
  background: var(--paper); overflow-wrap: break-word; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
nav a { color: var(--accent); margin-right: 0.8rem; white-space: nowrap; }
figure { margin: 1rem 0; } figure svg { display: block; width: 100%; max-width: 36rem; height: auto; }
figcaption { font-size: 0.85rem; opacity: 0.8; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.85rem; margin: 0.8rem 0; }
th, td { padding: 0.25rem 0.6rem; border-bottom: 1px solid var(--line); text-align: left; white-space: nowrap; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
pre { background: var(--soft); padding: 0.6rem; overflow-x: auto; font-size: 0.8rem; border-radius: 4px; }
"""


@dataclass(frozen=True)
class Table:
    """Rows under a header. Numbers are right-aligned, None is a dash."""

    header: Sequence[str]
    rows: Sequence[Sequence[object]]
    caption: str = ""


@dataclass(frozen=True)
class Picture:
    """A drawing with the name of its PNG and a caption."""

    name: str
    drawing: Drawing
    caption: str


@dataclass(frozen=True)
class Section:
    """One part of the report, with the commands that made it."""

    title: str
    text: str
    commands: Sequence[str]
    content: Sequence[Table | Picture]


def page(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """The whole HTML document."""
    links = " ".join(f'<a href="#{_anchor(s.title)}">{escape(s.title)}</a>' for s in sections)
    body = "\n".join(_section(section) for section in sections)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{escape(title)}</h1>
<p>{escape(subtitle)}</p>
<nav>{links}</nav>
{body}
</body>
</html>
"""


def _section(section: Section) -> str:
    parts = [f'<section id="{_anchor(section.title)}">', f"<h2>{escape(section.title)}</h2>"]
    parts.append(f"<p>{escape(section.text)}</p>")
    parts += [_table(item) if isinstance(item, Table) else _picture(item) for item in section.content]
    parts += [f"<pre>{escape(command)}</pre>" for command in dict.fromkeys(section.commands)]
    return "\n".join([*parts, "</section>"])


def _picture(picture: Picture) -> str:
    label = f'<svg aria-label="{escape(picture.caption, quote=True)}"'
    svg = picture.drawing.svg.replace("<svg", label, 1)
    return f"<figure>{svg}<figcaption>{escape(picture.caption)}</figcaption></figure>"


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in table.header)
    rows = "\n".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in table.rows)
    caption = f"<caption>{escape(table.caption)}</caption>" if table.caption else ""
    return f'<div class="wide"><table>{caption}<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _cell(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float | None):
        return f"<td>{escape(str(value))}</td>"
    return f'<td class="number">{number(value)}</td>'


def number(value: float | None) -> str:
    """A readable number: about three significant digits, thousands separators, a dash for None."""
    if value is None:
        return "–"
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    if value == 0:
        return "0"
    return f"{value:.3f}" if abs(value) >= 0.01 else f"{value:.2e}"


def _anchor(title: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in title.lower())
