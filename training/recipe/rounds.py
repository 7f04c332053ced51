"""The last part of a fit: the best adapter within the generator's reach for every task, taught to its trunk.

The task loss moves bases and trunk together, at one pass through the base for every few rows, and the trunk stays far
behind: what it makes of tasks lies along fewer directions than their best cores do. So when the bases are made, the
commands `cores` and `amortise` run, once or several times in turn: rounds of semi-amortised inference (1802.02550).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import structlog

from llgbm.checkpoint import GeneratorManifest, load_generator, save_generator, saved_in
from training.recipe import amortise, cores
from training.runs.artefacts import set_aside


@dataclass(frozen=True)
class RoundConfig:
    """Settings of a round."""

    cores: cores.CoreTraining = field(default_factory=cores.CoreTraining)
    amortise: amortise.TrunkTraining = field(default_factory=amortise.TrunkTraining)


@dataclass(frozen=True)
class Rounds:
    """What rounds work on.

    Attributes:
        count: of rounds.
        settings: of each.
        workdir: has the folders `round_1`, `round_2`, ... of the two commands.
        fitted: artefact that the first round starts from.
        artefact: folder of the artefact that the last one leaves.
        task_cores: folder of the cores that the first round starts from; none for what the generator makes.
        shared: values of both commands by name, such as the tasks and the base.
        of_amortise: values of `amortise` alone.
    """

    count: int
    settings: RoundConfig
    workdir: Path
    fitted: Path
    artefact: Path
    task_cores: Path | None
    shared: Mapping[str, Any]
    of_amortise: Mapping[str, Any]


def run_rounds(rounds: Rounds, texts: Path) -> GeneratorManifest:
    """Run both commands in turn on what the steps of a fit have made, and write the fit's artefact.

    Each goes on where it was stopped. A round of another generator, as after a fit that was shorter, is set aside:
    `round_1` as `round_1.1`. An artefact that is there keeps the calibration that it was given.

    Args:
        texts: file of the embeddings that the fit has made.
    """
    log = structlog.get_logger().bind(command="fit")
    start = rounds.fitted
    made = load_generator(start)
    made_by = made.manifest.made_by | {"rounds": []}
    for number in range(1, rounds.count + 1):
        folder = rounds.workdir / f"round_{number}"
        if cores.generators_of(folder / "cores") - {made.manifest.digest}:
            log.info("round of another generator", set_aside=str(set_aside(folder)))
        found = cores.Config(
            **_values(rounds.settings.cores),
            **rounds.shared,
            checkpoint=start,
            workdir=folder / "cores",
            start=rounds.task_cores if number == 1 else None,
        )
        cores.run(found, texts=texts)
        taught = amortise.Config(
            **_values(rounds.settings.amortise),
            **rounds.shared,
            **rounds.of_amortise,
            checkpoint=start,
            cores=found.workdir,
            workdir=folder / "amortise",
        )
        amortise.run(taught, texts=texts)
        start = taught.artefact
        made = load_generator(start)
        made_by["rounds"].append(
            {k: v for k, v in made.manifest.made_by.items() if k not in ("command", "seed", "started_from")}
        )
    manifest = replace(made.manifest, made_by=made_by)
    if there := saved_in(rounds.artefact, made.generator, manifest):
        log.info("already made", artefact=str(rounds.artefact))
        return there
    return save_generator(rounds.artefact, made.generator, manifest, made.prompt_index.blocks(len(manifest.tasks)))


def _values(settings: cores.CoreTraining | amortise.TrunkTraining) -> dict[str, Any]:
    """The values of settings by name, nested ones as they are."""
    return {value.name: getattr(settings, value.name) for value in fields(settings)}
