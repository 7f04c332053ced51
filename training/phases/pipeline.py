"""`python -m training pipeline`: runs every command that has a section in a plan, in the order of the method.

A plan is a configuration file with one section for each command. Commands are resumable, so the pipeline can be
stopped and started again at any time.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from llgbm.errors import ConfigError
from training.cli.command_line import Command, find
from training.cli.commands import COMMANDS
from training.cli.config import config_fields
from training.cli.config_values import read_yaml
from training.runs.log import set_up_logging

PHASES = (
    "teachers",
    "deltas",
    "encoder",
    "words",
    "fit",
    "match",
    "ablate",
    "compose",
    "calibrate",
    "evaluate",
    "scale",
    "report",
)
"""Commands that a plan may contain, in the order of execution."""


@dataclass(frozen=True)
class Config:
    """The plan, and the commands of it to run."""

    plan: Path = Path("training/configs/qwen-0.5b.yaml")
    """Configuration file with a section for each command to run."""
    phases: tuple[str, ...] = ()
    """Only these commands; empty runs all of the plan."""
    shared: tuple[str, ...] = ()
    """NAME=VALUE for every command that has such a value; overrides the plan."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.phases if name not in PHASES]
        if unknown:
            raise ConfigError(f"phases: {unknown[0]!r} is none of {', '.join(PHASES)}")


def run(config: Config) -> None:
    """Run the plan's commands one after the other."""
    run_plan(config.plan, config.phases, config.shared)


def run_plan(plan: Path, phases: Sequence[str] = (), shared: Sequence[str] = ()) -> dict[str, float]:
    """Run the commands of a plan; returns the seconds of each.

    All configurations are read before the first command runs.

    Raises:
        ConfigError: a requested command has no section, a section is for a command that the pipeline does not run,
            a section has an error, or no command has a shared value.
    """
    sections = read_yaml(plan)
    missing = [name for name in phases if name not in sections]
    if missing:
        raise ConfigError(f"{plan} has no section {missing[0]!r}; it has {', '.join(sections)}")
    others = [command.name for command in COMMANDS if command.name in sections and command.name not in PHASES]
    if others and not phases:
        raise ConfigError(
            f"{plan} is not a plan: the pipeline does not run {', '.join(others)}; run its commands one by one, "
            "or name those to run with phases=[...]"
        )
    commands = [find(COMMANDS, name) for name in PHASES if name in sections and (not phases or name in phases)]
    if not commands:
        raise ConfigError(f"{plan} has no section for any of {', '.join(PHASES)}")
    configs = [
        command.load(COMMANDS, [plan], [value for value in shared if _has(command, value)]) for command in commands
    ]
    for value in shared:
        if not any(_has(command, value) for command in commands):
            raise ConfigError(
                f"shared: none of {', '.join(c.name for c in commands)} has a value {value.partition('=')[0]!r}"
            )
    set_up_logging()
    seconds: dict[str, float] = {}
    for command, settings in zip(commands, configs, strict=True):
        began = time.monotonic()
        command.run_function()(settings)
        seconds[command.name] = round(time.monotonic() - began, 1)
        structlog.get_logger().info("phase done", phase=command.name, seconds=seconds[command.name])
    return seconds


def _has(command: Command, value: str) -> bool:
    """Whether a command's configuration has the value named by an override."""
    return value.partition("=")[0].partition(".")[0] in config_fields(command.config_class())
