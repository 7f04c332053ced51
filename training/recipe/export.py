"""`python -m training export`: writes a generator's artefact from the state of a fit.

    python -m training export state=runs/fit/state.pt fit=training/configs/recipe.yaml out=checkpoints/mine

A running fit saves its state, so a generator can be tried or kept before the fit ends. For an adapter, see `llgbm
generate`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llgbm.base import load_base
from llgbm.checkpoint import load_generator, save_generator
from llgbm.config import default_lora
from llgbm.errors import CheckpointError, ConfigError
from llgbm.generator import create_generator
from training.adapters.teacher_folder import load_teachers
from training.cli.command_line import find
from training.cli.commands import COMMANDS
from training.recipe.conditions import TEXTS_FILE, lasting_encoder
from training.recipe.fit import Config as FitConfig
from training.recipe.fit import fingerprint_of, manifest_of
from training.recipe.start import encoder_lora_of, word_scorer_of
from training.runs.log import set_up_logging


@dataclass(frozen=True)
class Config:
    """Settings of an export."""

    state: Path = Path("runs/fit/state.pt")
    """State of the fit."""
    fit: tuple[Path, ...] = ()
    """Configuration files of that fit, in the same order."""
    out: Path = Path("exported")
    """Folder to write."""


def run(config: Config) -> None:
    """Write the generator of a fit's state to `out` as an artefact, and print a summary.

    Raises:
        ConfigError: the fit's configuration is not given, or is not the one of the state.
        CheckpointError: the state is damaged.
    """
    set_up_logging()
    if not config.fit:
        raise ConfigError("a state does not contain all settings: name the fit's configuration file too, with fit=FILE")
    settings: FitConfig = find(COMMANDS, "fit").load(COMMANDS, config.fit)
    state = _read_state(config.state)
    base = load_base(settings.base, storage=settings.base_storage)
    tasks = settings.training_set().all
    generator = create_generator(base.spec, default_lora(base.spec), settings.generator)
    started_from = load_generator(settings.start) if settings.start else None
    start = started_from.manifest if started_from else None
    lora = encoder_lora_of(settings.encoder_lora, started_from)
    scorer = word_scorer_of(settings.answer_words, started_from, lora)
    names = [task.task_id for task in tasks]
    teachers = load_teachers(settings.teachers, names, base.spec.base_id) if settings.teachers else {}
    made_with = fingerprint_of(settings, tasks, base, start, teachers, lora, scorer)
    made_with.require_same_run(config.state.parent, [config.state.name])
    own = {name.removeprefix("0."): tensor for name, tensor in state["model"].items() if name.startswith("0.")}
    generator.load_state_dict(own)
    made = {"steps": state["step"]}
    # the fit's own embeddings, if they are there: texts encoded in other batches differ in the last bits
    with lasting_encoder(settings.text_encoder, config.state.parent / TEXTS_FILE, lora) as encoder:
        manifest, prompts = manifest_of(settings, generator.eval(), base, tasks, encoder, made, start=start)
    manifest = save_generator(config.out, generator, manifest, prompts, encoder_lora=lora, word_scorer=scorer)
    print(f"{config.out}: generator {manifest.digest[:12]} for {manifest.base_id}, {len(manifest.tasks)} tasks")


def _read_state(path: Path) -> dict[str, Any]:
    try:
        state = torch.load(path, weights_only=True, mmap=True, map_location="cpu")
    except Exception as error:  # the unpickler raises many types for a damaged file
        raise CheckpointError(f"{path} cannot be read as the state of a fit: {error}") from error
    if not isinstance(state, dict) or not {"step", "model", "settings"} <= state.keys():
        raise CheckpointError(f"{path} is not the state of a fit")
    return state
