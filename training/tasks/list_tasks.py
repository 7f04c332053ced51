"""`python -m training tasks`: lists task files in a table, writes their index, and optionally writes task files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from training.runs.artefacts import replace_text
from training.runs.log import RunLog
from training.tasks.format import Task, load_tasks, save_task, tasks_digest
from training.tasks.procedural_tasks import synthetic_tasks
from training.tasks.readers import read_founding_list, read_hub

COLUMNS = (
    "task_id", "category", "source", "licence", "train", "test", "mean_input_words", "descriptions", "unseen",
    "majority_rate",
)  # fmt: skip
_SHOWN = (0, 1, 4, 5, 6, 7, 9, 3)
_PIPE_WIDTH = 160


@dataclass(frozen=True)
class Config:
    """Settings of the list of tasks."""

    folder: Path = Path("tasks/train")
    """Folder of task files; created if tasks are written to it."""
    ids: tuple[str, ...] = ()
    """Only these tasks; empty lists all in the folder."""
    workdir: Path = Path("runs")
    """Folder of the index `tasks.tsv`."""
    synthetic: int = 0
    """Number of procedural tasks to write to the folder first; they need no download."""
    families: tuple[str, ...] = ()
    """Families of procedural tasks; empty uses all."""
    seed: int = 0
    """Random seed of the procedural tasks."""
    founding: tuple[Path, ...] = ()
    """JSON lists with prompt, response and system, to write to the folder as tasks first."""
    hub: tuple[str, ...] = ()
    """Hub data sets to write to the folder as tasks first: arc_e, boolq, gsm8k."""


def run(config: Config) -> None:
    """Write the requested tasks, then list the folder and write the index."""
    with RunLog(config.workdir, "tasks", config) as log:
        for task in _made(config):
            log.logger.info("wrote", path=str(save_task(config.folder, task)))
        tasks = load_tasks(config.folder, config.ids or None)
        index = config.workdir / "tasks.tsv"
        replace_text(index, index_text(tasks))
        log.record_artefact(index, data_digest=tasks_digest(tasks))
    print_table(tasks, Console(width=None if Console().is_terminal else _PIPE_WIDTH))


def index_row(task: Task) -> tuple[str, ...]:
    """The columns of one task, as texts. The majority rate is the frequency of the commonest test output."""
    rows = (*task.train, *task.test)
    words = sum(len(row.input.split()) for row in rows) / max(1, len(rows))
    most = Counter(row.output for row in task.test).most_common(1)
    majority = most[0][1] / len(task.test) if most else 0.0
    return (
        task.task_id,
        task.category,
        " ".join(task.source.split()),
        " ".join(task.licence.split()),
        str(len(task.train)),
        str(len(task.test)),
        f"{words:.1f}",
        str(len(task.descriptions)),
        str(len(task.unseen_descriptions)),
        f"{majority:.2f}",
    )


def index_text(tasks: Sequence[Task]) -> str:
    """The index: tab-separated, a header line and one line per task."""
    return "".join("\t".join(row) + "\n" for row in (COLUMNS, *map(index_row, tasks)))


def print_table(tasks: Sequence[Task], console: Console) -> None:
    """Print the tasks and their totals."""
    table = Table(title=f"{len(tasks)} tasks")
    for i in _SHOWN:
        table.add_column(COLUMNS[i].replace("_", " "), justify="left" if i in (0, 1, 3) else "right")
    for task in tasks:
        row = index_row(task)
        table.add_row(*(row[i] for i in _SHOWN))
    console.print(table)
    train, test = sum(len(task.train) for task in tasks), sum(len(task.test) for task in tasks)
    console.print(f"{train} training rows, {test} test rows, {len({task.category for task in tasks})} categories")


def _made(config: Config) -> Iterator[Task]:
    if config.synthetic:
        yield from synthetic_tasks(config.seed, config.families or None, config.synthetic)
    for path in config.founding:
        yield read_founding_list(path)
    for name in config.hub:
        yield read_hub(name)
