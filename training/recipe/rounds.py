"""The last part of a fit: the best adapter within the generator's reach for every task, taught to its trunk.

The task loss moves bases and trunk together, at one pass through the base for every few rows, and the trunk stays far
behind: what it makes of tasks lies along fewer directions than their best cores do. So when the bases are made, the
commands `cores` and `amortise` run, once or several times in turn: rounds of semi-amortised inference (1802.02550).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from llgbm.checkpoint import GeneratorManifest, load_generator, save_generator, saved_in
from training.recipe import amortise, cores
from training.runs.artefacts import set_aside

if TYPE_CHECKING:
    from training.recipe.fit import Config


@dataclass(frozen=True)
class RoundConfig:
    """Settings of a round."""

    cores: cores.CoreTraining = field(default_factory=cores.CoreTraining)
    amortise: amortise.TrunkTraining = field(default_factory=amortise.TrunkTraining)


def run_rounds(config: Config, task_ids: Sequence[str], texts: Path) -> GeneratorManifest:
    """Run both commands in turn on what the steps of a fit have made, and write the fit's artefact.

    Each goes on where it was stopped. A round of another generator, as after a fit that was shorter, is set aside:
    `round_1` as `round_1.1`. An artefact that is there keeps the calibration that it was given.

    Args:
        task_ids: the fit's tasks, but for the procedural ones.
        texts: file of the embeddings that the fit has made.
    """
    where: dict[str, Any] = {
        "tasks": config.tasks,
        "task_ids": tuple(task_ids),
        "base": config.base,
        "base_storage": config.base_storage,
        "text_encoder": config.text_encoder,
    }
    log = structlog.get_logger().bind(command="fit")
    start = config.fitted
    made = load_generator(start)
    made_by = made.manifest.made_by | {"rounds": []}
    for number in range(1, config.rounds + 1):
        folder = config.workdir / f"round_{number}"
        if cores.generators_of(folder / "cores") - {made.manifest.digest}:
            log.info("round of another generator", set_aside=str(set_aside(folder)))
        found = cores.Config(
            **_values(config.round.cores),
            **where,
            checkpoint=start,
            workdir=folder / "cores",
            start=config.task_cores if number == 1 and config.task_cores_from is not None else None,
        )
        cores.run(found, texts=texts)
        taught = amortise.Config(
            **_values(config.round.amortise),
            **where,
            checkpoint=start,
            cores=found.workdir,
            workdir=folder / "amortise",
            wordings=config.wordings,
            hidden_families=config.hidden_families,
        )
        amortise.run(taught, texts=texts)
        start = taught.artefact
        made = load_generator(start)
        made_by["rounds"].append(
            {k: v for k, v in made.manifest.made_by.items() if k not in ("command", "seed", "started_from")}
        )
    manifest = replace(made.manifest, made_by=made_by)
    if there := saved_in(config.artefact, made.generator, manifest):
        log.info("already made", artefact=str(config.artefact))
        return there
    return save_generator(config.artefact, made.generator, manifest, made.prompt_index.blocks(len(manifest.tasks)))


def _values(settings: cores.CoreTraining | amortise.TrunkTraining) -> dict[str, Any]:
    """The values of settings by name, nested ones as they are."""
    return {value.name: getattr(settings, value.name) for value in fields(settings)}
