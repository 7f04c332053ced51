from __future__ import annotations

import sys
from typing import Any

import pytest

from llgbm.base import Base
from llgbm.errors import ConfigError
from training.cli.config import load_config
from training.phases import deltas, teachers
from training.quality import evaluate
from training.runs.fan_out import open_workers
from training.runs.workers import RayTask, ThisProcess


def test_in_this_process_the_items_are_done_in_order(tiny_base: Base) -> None:
    done = list(ThisProcess(tiny_base).map(lambda base, item: (base is tiny_base, 2 * item), range(3)))
    assert done == [(0, (True, 0)), (1, (True, 2)), (2, (True, 4))]


def test_without_the_extra_the_error_says_what_to_install(tiny_base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "training.runs.ray_workers", raising=False)
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(ConfigError, match=r"pip install -e '\.\[ray\]', or leave out ray"),
        open_workers("local", RayTask(), tiny_base, "base", "float32"),
    ):
        pass


@pytest.mark.parametrize("values", [{"cpus": 0}, {"memory": -1}, {"retries": -1}])
def test_what_a_task_takes_is_checked(values: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="ray_task: cpus must be above 0"):
        RayTask(**values)


@pytest.mark.parametrize("config_class", [teachers.Config, deltas.Config, evaluate.Config])
def test_the_commands_that_fan_out_have_the_same_values_for_it(config_class: type) -> None:
    config: Any = load_config(config_class, [], ["ray=local", "ray_task.cpus=2"])
    assert (config.ray, config.ray_task.cpus) == ("local", 2.0)
