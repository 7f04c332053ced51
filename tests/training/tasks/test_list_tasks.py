import json
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from training.runs.artefacts import read_manifest
from training.tasks.format import Example, Task, load_tasks, tasks_digest
from training.tasks.list_tasks import COLUMNS, Config, index_row, index_text, print_table, run
from training.tasks.procedural_tasks import synthetic_tasks

TASK = Task(
    "greet",
    "talk",
    "made\tup",
    "MIT",
    ("Greet.", "Say hello.", "Be polite."),
    "exact_match",
    None,
    (Example("to Ann", "hi"),),
    (Example("a b c", "hi"), Example("d e f", "ho"), Example("g h i", "hi")),
)


def test_a_row_of_the_index_says_what_is_in_the_task() -> None:
    assert dict(zip(COLUMNS, index_row(TASK), strict=True)) == {
        "task_id": "greet",
        "category": "talk",
        "source": "made up",
        "licence": "MIT",
        "train": "1",
        "test": "3",
        "mean_input_words": "2.8",
        "descriptions": "3",
        "unseen": "1",
        "majority_rate": "0.67",
    }


def test_the_index_has_a_line_for_each_task() -> None:
    lines = index_text([TASK, TASK]).splitlines()
    assert lines[0].split("\t") == list(COLUMNS)
    assert lines[1] == lines[2] == "\t".join(index_row(TASK))


def test_the_table_shows_the_tasks_and_their_sum() -> None:
    out = StringIO()
    print_table([TASK], Console(file=out, width=120))
    assert "greet" in out.getvalue()
    assert "1 training rows, 3 test rows, 1 categories" in out.getvalue()


def test_tasks_are_made_listed_and_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"prompt": f"p {i}", "response": "r", "system": "Do it."} for i in range(10)]
    founding = tmp_path / "mine_train.json"
    founding.write_text(json.dumps(rows))
    config = Config(
        folder=tmp_path / "tasks",
        workdir=tmp_path / "runs",
        synthetic=3,
        families=("votes",),
        seed=5,
        founding=(founding,),
    )
    run(config)
    run(config)
    tasks = load_tasks(tmp_path / "tasks")
    assert tasks[1:] == synthetic_tasks(5, ["votes"], 3)
    assert tasks[0].task_id == "mine"
    assert (tmp_path / "runs" / "tasks.tsv").read_text() == index_text(tasks)
    made = read_manifest(tmp_path / "runs")["tasks.tsv"]
    assert (made.command, made.data_digest) == ("tasks", tasks_digest(tasks))
    assert "4 tasks" in capsys.readouterr().out
