"""`python -m training report`: one page with all results of a working directory, and each figure as PNG.

The page is one file that can be sent, kept, and read offline. Every section names the command that made its results.
Missing results are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llgbm.errors import ConfigError
from training.cli.command_line import find
from training.cli.commands import COMMANDS
from training.cli.config import from_dict
from training.report import quality_sections
from training.report import sections as make
from training.report.page import Picture, Section, Table, page
from training.runs.artefacts import Artefact, read_manifest, replace_text
from training.runs.log import RunLog
from training.runs.results import command_of, read_result, read_results


@dataclass(frozen=True)
class Config:
    """Settings of the report."""

    workdir: Path = Path("runs/teachers")
    """The working directory."""
    out: Path | None = None
    """Folder for `report.html` and the PNGs; by default `report` in the working directory."""
    quality: Path | None = None
    """Quality table written by `evaluate`; by default `results/quality.json` in the working directory, if it exists."""
    title: str = "LLGBM: report of a run"
    """Title of the page."""


def run(config: Config) -> None:
    """Write `report.html` and the PNGs.

    Raises:
        ConfigError: there is nothing to report.
    """
    out = config.out or config.workdir / "report"
    found = sections(config)
    if not found:
        raise ConfigError(f"{config.workdir} has no results and no metrics; run a command with this workdir first")
    out.mkdir(parents=True, exist_ok=True)
    with RunLog(config.workdir, "report", config) as log:
        for picture in (item for section in found for item in section.content if isinstance(item, Picture)):
            (out / f"{picture.name}.png").write_bytes(picture.drawing.png)
        made = f"Made from {config.workdir} on {datetime.now(UTC):%Y-%m-%d %H:%M} UTC."
        replace_text(out / "report.html", page(config.title, made, found))
        log.record_artefact(out / "report.html", kind="report")
    print(out / "report.html")


def sections(config: Config) -> list[Section]:
    """The sections with results in the working directory, in the order of the method."""
    results = read_results(config.workdir)
    quality = results.pop("quality", None)
    if config.quality is not None:
        quality = read_result(config.quality)
    artefacts = read_manifest(config.workdir)
    found = [make.deltas(name, result) for name, result in results.items() if "silhouette" in result]
    matches = {name.removeprefix("match-"): result for name, result in results.items() if name.startswith("match-")}
    found += [make.matches(matches)] if matches else []
    single: Mapping[str, Callable[[Mapping[str, Any]], Section]] = {
        "ablation": make.ablation,
        "guided": make.guided,
        "composition": make.composition,
        "scale": make.scale,
        "confidence": quality_sections.confidence,
    }
    found += [build(results[name]) for name, build in single.items() if name in results]
    found += quality_sections.quality(quality) if quality else []
    found += make.curves(config.workdir, _commands(artefacts))
    return [*found, _artefacts(artefacts)] if artefacts and found else found


def command_line(artefact: Artefact) -> str:
    """The command line that made an artefact; only the command if this version does not know its settings."""
    try:
        config_class = find(COMMANDS, artefact.command).config_class()
        return command_of(artefact.command, from_dict(config_class, artefact.config))
    except ConfigError:
        return f"python -m training {artefact.command}  # with settings that this version does not have"


def _commands(artefacts: Mapping[str, Artefact]) -> dict[str, list[str]]:
    commands: dict[str, list[str]] = {}
    for artefact in artefacts.values():
        line = command_line(artefact)
        if line not in commands.setdefault(artefact.command, []):
            commands[artefact.command].append(line)
    return commands


def _artefacts(artefacts: Mapping[str, Artefact]) -> Section:
    rows = [
        (name, a.kind, a.command, a.made_at, a.seconds, (a.git_commit or "–")[:12], (a.base_revision or "–")[:12])
        for name, a in artefacts.items()
    ]
    header = ("artefact", "kind", "command", "made at", "seconds", "commit", "base")
    text = "The command that made each file of this working directory; `artefacts.json` has the full configurations."
    lines = [line for of_one in _commands(artefacts).values() for line in of_one]
    return Section("Artefacts", text, lines, [Table(header, rows)])
