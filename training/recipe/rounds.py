"""The last part of a fit: rounds of the commands `cores` and `amortise`, semi-amortised inference (arXiv 1802.02550).

The task loss trains bases and trunk together and needs one pass through the base for every few rows. The trunk stays
far behind: its outputs span fewer directions than the best cores of the tasks. So once the bases are trained, each
round finds the best adapter that the generator can represent for every task, and trains the trunk to predict it.
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
    """Inputs and outputs of the rounds.

    Attributes:
        count: number of rounds.
        settings: settings of each round.
        workdir: contains the folders `round_1`, `round_2`, ... of the two commands.
        fitted: artefact that the first round starts from.
        artefact: folder of the final artefact.
        task_cores: folder of the cores that the first round starts from; None starts at the generator's outputs.
        shared: settings of both commands by name, such as the tasks and the base.
        of_amortise: settings of `amortise` alone.
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
    """Run both commands alternately on the fitted generator, and write the fit's artefact.

    Both commands are resumable. A round of another generator, for example of a shorter fit, is renamed from `round_1`
    to `round_1.1`. If the same artefact exists already, it keeps its calibration.

    Args:
        texts: file of the embeddings that the fit has computed.
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
    """The settings by name; nested ones stay dataclasses."""
    return {value.name: getattr(settings, value.name) for value in fields(settings)}
