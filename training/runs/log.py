"""The records of a run: log lines, progress, metrics and the manifest of its artefacts.

    with RunLog(workdir, "fit", config) as log:
        with log.progress("fit", total=steps) as progress:
            log.metrics(step=3, loss=0.5)            -> {workdir}/metrics/fit.jsonl
            progress.update(4, "loss 0.500")
        log.record_artefact(workdir / "generator")   -> {workdir}/artefacts.json

On a terminal, log lines are coloured text and progress is a bar. Elsewhere, log lines are JSON and progress is a log
line every half minute. Both go to stderr, so that stdout contains only the command's result.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import structlog
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from structlog.typing import FilteringBoundLogger

from training.cli.config import config_digest, to_dict
from training.runs.artefacts import Artefact, write_artefact
from training.runs.metrics import MetricsFile

PROGRESS_SECONDS = 30.0
"""Seconds between progress lines without a terminal."""


class Progress(Protocol):
    """Progress of a piece of work."""

    def update(self, done: int, note: str = "") -> None:
        """Report that `done` items of the total are finished, with a short note."""


class RunLog:
    """The records of one run of one command.

    Attributes:
        workdir: the working directory; created if needed.
        command: the command's name.
        logger: a structlog logger that adds the command to every line.

    Args:
        workdir: folder of metrics and manifest.
        command: the command's name; names the metrics file.
        config: the command's configuration, a dataclass; recorded with every artefact.
    """

    def __init__(self, workdir: Path | str, command: str, config: object) -> None:
        self.workdir = Path(workdir)
        self.command = command
        self.workdir.mkdir(parents=True, exist_ok=True)
        set_up_logging()
        self.logger: FilteringBoundLogger = structlog.get_logger().bind(command=command)
        self._config = to_dict(config)
        self._config_digest = config_digest(config)
        self._metrics: dict[str, MetricsFile] = {}
        self._started = self._mark = time.monotonic()
        self.logger.info("started", workdir=str(self.workdir), config=self._config_digest)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        seconds = round(time.monotonic() - self._started, 1)
        if error is None:
            self.logger.info("finished", seconds=seconds)
        else:
            self.logger.error("failed", seconds=seconds, error=f"{type(error).__name__}: {error}")
        self.close()

    def metrics(self, *, step: int, series: str = "", **values: Any) -> None:
        """Append one line to the metrics.

        The first line of a process decides which lines of an earlier run are kept, see `MetricsFile`.

        Args:
            step: the step of the values; must not decrease within a series.
            series: name of a separate file, for a command that runs several trainings, such as one per task.
            values: numbers (also of torch and numpy), texts, and lists and mappings of these.
        """
        name = f"{self.command}.{series}" if series else self.command
        if name not in self._metrics:
            self._metrics[name] = MetricsFile(self.workdir / "metrics" / f"{name}.jsonl")
        self._metrics[name].append(step, values)

    @contextmanager
    def progress(self, what: str, *, total: int, every: float = PROGRESS_SECONDS) -> Iterator[Progress]:
        """Show progress: a bar on a terminal, else a log line every `every` seconds."""
        if sys.stderr.isatty():
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
            )
            last = (TimeRemainingColumn(), TextColumn("{task.fields[note]}"))
            with Bar(*columns, *last, console=Console(stderr=True)) as bar:
                yield _BarProgress(bar, what, total)
        else:
            yield _LoggedProgress(self.logger, what, total, every)

    def record_artefact(
        self,
        path: Path | str,
        *,
        kind: str = "",
        base_revision: str | None = None,
        data_digest: str | None = None,
        seconds: float | None = None,
        **details: Any,
    ) -> None:
        """Record the provenance of an artefact in `{workdir}/artefacts.json`.

        Args:
            path: the file or folder, already complete.
            kind: its kind; by default the path's last part.
            base_revision: revision of the base's weights.
            data_digest: digest of the data, see `training.tasks.format.tasks_digest`.
            seconds: time it took; by default the time since the last artefact, or since the start.
            details: further JSON values to record.

        Raises:
            FileNotFoundError: `path` does not exist.
            CacheMismatchError: the existing `artefacts.json` is not a manifest of this version.
        """
        if not Path(path).exists():
            raise FileNotFoundError(f"{path}: cannot be recorded as an artefact before it is written")
        now = time.monotonic()
        artefact = Artefact(
            kind=kind or Path(path).name,
            command=self.command,
            config=self._config,
            config_digest=self._config_digest,
            made_at=datetime.now(UTC).isoformat(timespec="seconds"),
            seconds=round(now - self._mark if seconds is None else seconds, 3),
            code_version=code_version(),
            git_commit=git_commit(),
            base_revision=base_revision,
            data_digest=data_digest,
            details=details,
        )
        self._mark = now
        write_artefact(self.workdir, path, artefact)
        self.logger.info("artefact", path=str(path), seconds=artefact.seconds)

    def close(self) -> None:
        """Close the metrics files."""
        for file in self._metrics.values():
            file.close()


def set_up_logging() -> None:
    """Send structlog's lines to stderr: coloured text on a terminal, one JSON object per line elsewhere."""
    terminal = sys.stderr.isatty()
    renderer = structlog.dev.ConsoleRenderer() if terminal else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="%H:%M:%S" if terminal else "iso", utc=not terminal),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger("info"),
        logger_factory=lambda *_: _StderrLogger(),
        cache_logger_on_first_use=False,
    )


@cache
def code_version() -> str:
    """Version of the installed package; `unknown` if it is not installed."""
    try:
        return version("llgbm")
    except PackageNotFoundError:
        return "unknown"


@cache
def git_commit() -> str | None:
    """Commit of this clone, with `+changes` if tracked files were changed; None outside a clone."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return None
    try:
        run = [
            subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10, check=True)
            for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        ]
    except (OSError, subprocess.SubprocessError):
        return None
    return run[0].stdout.strip() + ("+changes" if run[1].stdout.strip() else "")


class _StderrLogger:
    """Looks up `sys.stderr` at every line, because a progress bar replaces it to print lines above itself."""

    def msg(self, message: str) -> None:
        print(message, file=sys.stderr, flush=True)

    debug = info = warning = error = critical = exception = msg


class _BarProgress:
    def __init__(self, bar: Bar, what: str, total: int) -> None:
        self._bar = bar
        self._task = bar.add_task(what, total=total, note="")

    def update(self, done: int, note: str = "") -> None:
        self._bar.update(self._task, completed=done, note=note)


class _LoggedProgress:
    def __init__(self, logger: FilteringBoundLogger, what: str, total: int, every: float) -> None:
        self._logger, self._what, self._total, self._every = logger, what, total, every
        self._start: tuple[float, int] | None = None
        self._last = time.monotonic()

    def update(self, done: int, note: str = "") -> None:
        now = time.monotonic()
        if self._start is None:  # a resumed run starts in the middle, so its rate is measured from there
            self._start = (self._last, done - 1)
        if now - self._last < self._every and done < self._total:
            return
        self._last = now
        rate = (done - self._start[1]) / max(now - self._start[0], 1e-9)
        left = {"seconds_left": round((self._total - done) / rate)} if rate > 0 and done < self._total else {}
        noted = {"note": note} if note else {}
        self._logger.info("progress", what=self._what, done=done, total=self._total, **left, **noted)
