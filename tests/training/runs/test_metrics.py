import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.runs.metrics import MetricsFile, read_metrics


def write(path: Path, steps: list[int], value: Any = 0) -> None:
    file = MetricsFile(path)
    for step in steps:
        file.append(step, {"value": value})
    file.close()


def steps_of(path: Path) -> list[int]:
    return [record["step"] for record in read_metrics(path)]


def test_a_line_can_be_read_as_soon_as_it_is_written(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "a" / "fit.jsonl")
    file.append(1, {"loss": 0.5, "task": "x"})
    [record] = read_metrics(file.path)
    assert (record["step"], record["loss"], record["task"]) == (1, 0.5, "x")
    file.close()


@settings(deadline=None)
@given(st.integers(1, 12), st.integers(0, 12), st.integers(1, 5))
def test_a_resumed_run_leaves_the_lines_of_one_run(
    tmp_path_factory: pytest.TempPathFactory, first: int, resumed: int, more: int
) -> None:
    path = tmp_path_factory.mktemp("metrics") / "fit.jsonl"
    resumed = min(resumed, first)
    write(path, list(range(first)), "old")
    write(path, list(range(resumed, resumed + more)), "new")
    records = read_metrics(path)
    assert [r["step"] for r in records] == list(range(resumed + more))
    assert [r["value"] for r in records] == ["old"] * resumed + ["new"] * more


def test_a_torn_last_line_is_not_counted_and_is_written_again(tmp_path: Path) -> None:
    path = tmp_path / "fit.jsonl"
    write(path, [0, 1, 2])
    path.write_text(path.read_text()[:-9])
    assert steps_of(path) == [0, 1]
    write(path, [2, 3])
    assert steps_of(path) == [0, 1, 2, 3]


def test_a_fresh_run_sets_the_old_file_aside(tmp_path: Path) -> None:
    path = tmp_path / "fit.jsonl"
    for value in ("first", "second", "third"):
        write(path, [0, 1], value)
    values = {p.name: read_metrics(p)[0]["value"] for p in tmp_path.iterdir()}
    assert values == {"fit.jsonl": "third", "fit.1.jsonl": "first", "fit.2.jsonl": "second"}


def test_a_torn_line_in_the_middle_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "fit.jsonl"
    path.write_text('{"step": 0}\n{"st\n{"step": 2}\n')
    with pytest.raises(ValueError, match=r"fit\.jsonl:2: not a line of metrics"):
        read_metrics(path)


def test_numbers_of_any_kind_are_strict_json_and_come_back(tmp_path: Path) -> None:
    path = tmp_path / "fit.jsonl"
    values = {
        "nan": math.nan,
        "inf": [math.inf, -math.inf],
        "torch": torch.tensor(0.5),
        "numpy": np.float32(0.25),
        "nested": {"n": np.int64(3), "nan": float("nan")},
    }
    file = MetricsFile(path)
    file.append(0, values)
    file.close()

    def no_constants(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    json.loads(path.read_text(), parse_constant=no_constants)
    [record] = read_metrics(path)
    assert math.isnan(record["nan"])
    assert (record["torch"], record["numpy"], record["nested"]["n"]) == (0.5, 0.25, 3)
