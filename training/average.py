"""`python -m training average`: the mean of the parameters of generators of which each went on from another.

    python -m training average 'checkpoints=[runs/amortise/generator, runs/fit/generator]' out=runs/mean/generator

What a fit forgets while it goes on, and what it learns, are both worth something, and the mean of before and after
often does better on what neither has seen than either of them (WiSE-FT, 2109.01903). Only generators of one descent:
the mean of two that were initialised apart is none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from llgbm.checkpoint import Checkpoint, GeneratorManifest, load_generator, save_generator
from llgbm.errors import ConfigError
from training.results import command_of
from training.runlog import set_up_logging


@dataclass(frozen=True)
class Config:
    """What to average."""

    checkpoints: tuple[Path, ...] = ()
    """Artefacts. Tasks and prompt index are those of the last one; tasks that only earlier ones know are listed too."""
    weights: tuple[float, ...] = ()
    """What each counts, in sum 1; empty for all alike."""
    out: Path = Path("runs/average/generator")
    """Folder of the mean."""

    def __post_init__(self) -> None:
        if self.weights and (len(self.weights) != len(self.checkpoints) or abs(sum(self.weights) - 1) > 1e-6):
            raise ConfigError(f"weights are one for each of the {len(self.checkpoints)} checkpoints, in sum 1")


def run(config: Config) -> None:
    """Write the mean, and print what it is.

    Raises:
        ConfigError: fewer than two artefacts, or of another base, text encoder, LoRASpec or size than each other.
    """
    set_up_logging()
    if len(config.checkpoints) < 2:
        raise ConfigError("name at least two checkpoints")
    found = [load_generator(path) for path in config.checkpoints]
    for path, checkpoint in zip(config.checkpoints, found, strict=True):
        if _kind(checkpoint.manifest) != _kind(found[0].manifest):
            raise ConfigError(f"{path} is of another base, text encoder, LoRASpec or size than {config.checkpoints[0]}")
    weights = config.weights or (1 / len(found),) * len(found)
    last = found[-1]
    last.generator.load_state_dict(mean_state([checkpoint.generator.state_dict() for checkpoint in found], weights))
    listed = {task.task_id: task for checkpoint in found for task in checkpoint.manifest.tasks}
    blocks = dict(
        zip((t.task_id for t in last.manifest.tasks), last.prompt_index.blocks(len(last.manifest.tasks)), strict=True)
    )
    made_by = {"command": command_of("average", config), "of": [_origin(checkpoint) for checkpoint in found]}
    manifest = replace(last.manifest, tasks=tuple(listed.values()), made_by=made_by, confidence={}, context_scale=None)
    none = last.prompt_index.embeddings[:0]
    saved = save_generator(config.out, last.generator, manifest, [blocks.get(task_id, none) for task_id in listed])
    print(f"{config.out}: generator {saved.digest[:12]}, the mean of {len(found)}")


def mean_state(states: Sequence[dict[str, Tensor]], weights: Sequence[float]) -> dict[str, Tensor]:
    """The weighted mean of the parameters of generators, by name."""
    return {
        name: torch.stack([w * state[name] for w, state in zip(weights, states, strict=True)]).sum(0)
        for name in states[0]
    }


def _kind(manifest: GeneratorManifest) -> tuple[object, ...]:
    return (manifest.base_id, manifest.base_revision, manifest.encoder_id, manifest.lora, manifest.generator)


def _origin(checkpoint: Checkpoint) -> dict[str, object]:
    return {"digest": checkpoint.manifest.digest, "made_by": checkpoint.manifest.made_by}
