"""`python -m training export`: writes an adapter from a prompt, or a generator's artefact from the state of a fit.

    python -m training export prompt="Translate the English word to French." out=french
    python -m training export state=runs/fit/state.pt fit=training/configs/recipe.yaml out=checkpoints/mine

The first writes a PEFT folder. The second reads the state that a running fit saves, so that a generator can be tried or
kept before the fit ends.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llgbm.base import load_base
from llgbm.checkpoint import GeneratorManifest, load_generator, save_generator
from llgbm.config import default_lora
from llgbm.errors import CheckpointError, ConfigError
from llgbm.example_file import parse_arrow
from llgbm.export import export_adapter
from llgbm.generator import create_generator
from llgbm.prompting import AdapterRequest
from training.adapters.teacher_folder import load_teachers
from training.cli.commands import COMMANDS
from training.cli.config import load_config
from training.recipe.conditions import TEXTS_FILE, lasting_encoder
from training.recipe.fit import Config as FitConfig
from training.recipe.fit import fingerprint_of, manifest_of, started_from, training_tasks
from training.recipe.generator_base import maker_of
from training.runs.log import set_up_logging


@dataclass(frozen=True)
class Config:
    """Settings of an export."""

    prompt: tuple[str, ...] = ()
    """Description of the adapter's task, in one or several wordings."""
    example: tuple[str, ...] = ()
    """Examples of the task, each as "INPUT => OUTPUT"."""
    scale: float = 1.0
    """Factor on the adapter's effect."""
    checkpoint: Path = Path("checkpoints/qwen2.5-0.5b")
    """The generator that makes the adapter."""
    text_encoder: str = ""
    """Hub id or folder of the text encoder; by default the checkpoint's."""
    state: Path | None = None
    """State of a fit, to export its generator instead of an adapter."""
    fit: tuple[Path, ...] = ()
    """Configuration files of that fit, in the same order."""
    out: Path = Path("exported")
    """Folder to write."""


def run(config: Config) -> None:
    """Write the folder, and print a summary.

    Raises:
        ConfigError: neither a prompt nor a state is given, or both; or as `export_adapter` and `parse_arrow`.
        CheckpointError: there is no generator.
    """
    set_up_logging()
    asked = bool(config.prompt or config.example)
    if asked == (config.state is not None):
        raise ConfigError("give either a prompt (or examples), for an adapter, or a state, for a generator")
    if asked:
        request = AdapterRequest(config.prompt, tuple(map(parse_arrow, config.example)), config.scale)
        made = export_adapter(maker_of(load_generator(config.checkpoint), config.text_encoder), request, config.out)
        near = ", ".join(f"{name} {cosine:.2f}" for name, cosine in made.nearest)
        print(f"{config.out}: adapter {made.id}; nearest training tasks: {near or 'none'}")
        if made.warning:
            print(f"warning: {made.warning}")
    else:
        manifest = export_state(config)
        print(f"{config.out}: generator {manifest.digest[:12]} for {manifest.base_id}, {len(manifest.tasks)} tasks")


def export_state(config: Config) -> GeneratorManifest:
    """Write the generator of a fit's state to `out` as an artefact.

    Raises:
        ConfigError: the fit's configuration is not given, or is not the one of the state.
        CheckpointError: the state is damaged.
    """
    if config.state is None or not config.fit:
        raise ConfigError("a state does not contain all settings: name the fit's configuration file too, with fit=FILE")
    settings = load_config(FitConfig, config.fit, section="fit", other_sections=_other_sections())
    state = _read_state(config.state)
    base = load_base(settings.base, storage=settings.base_storage)
    tasks = training_tasks(settings).all
    generator = create_generator(base.spec, default_lora(base.spec), settings.generator)
    start = None if settings.start is None else started_from(settings.start, generator)
    names = [task.task_id for task in tasks]
    teachers = load_teachers(settings.teachers, names, base.spec.base_id) if settings.teachers else {}
    made_with = fingerprint_of(settings, tasks, base, start, teachers)
    made_with.require_same_run(config.state.parent, [config.state.name])
    own = {name.removeprefix("0."): tensor for name, tensor in state["model"].items() if name.startswith("0.")}
    generator.load_state_dict(own)
    made = {"steps": state["step"]}
    # the fit's own embeddings, if they are there: texts encoded in other batches differ in the last bits
    with lasting_encoder(settings.text_encoder, config.state.parent / TEXTS_FILE) as encoder:
        manifest, prompts = manifest_of(settings, generator.eval(), base, tasks, encoder, made, start=start)
    return save_generator(config.out, generator, manifest, prompts)


def _read_state(path: Path) -> dict[str, Any]:
    try:
        state = torch.load(path, weights_only=True, mmap=True, map_location="cpu")
    except Exception as error:  # the unpickler raises many types for a damaged file
        raise CheckpointError(f"{path} cannot be read as the state of a fit: {error}") from error
    if not isinstance(state, dict) or not {"step", "model", "settings"} <= state.keys():
        raise CheckpointError(f"{path} is not the state of a fit")
    return state


def _other_sections() -> dict[str, Any]:
    """The sections of other commands, which the fit's file may contain."""
    return {command.name: command.config_class for command in COMMANDS if command.name != "fit"}
