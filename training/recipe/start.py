"""The start of a fit: the generator of another artefact, also one whose text encoder has another LoRA."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from llgbm.checkpoint import Checkpoint
from llgbm.conditioning.encoder_lora import EncoderLoRA
from llgbm.errors import ConfigError
from llgbm.generator import LoRAGenerator
from llgbm.prompting import TextEncoder, example_lines
from training.tasks.format import Task

_WORDINGS, _EXAMPLES = 5, 1
"""Texts of each task that a map between two encoders is fitted on."""
_NOISE = 0.1
"""The ridge is that of conditions with noise of this length; conditions have length 1."""


@dataclass(frozen=True, eq=False)
class ConditionMap:
    """An affine map from the conditions of one text encoder to those of another.

    Attributes:
        weight: (d, d) float64.
        offset: (d,) float64.
        r2: fraction of the variance that it explains, on the conditions that it was fitted on.
    """

    weight: Tensor
    offset: Tensor
    r2: float


def encoder_lora_of(file: Path | None, start: Checkpoint | None) -> EncoderLoRA | None:
    """The LoRA of a fit's text encoder: that of the file, else that of the start, else none.

    Raises:
        AdapterFormatError: the file is not the LoRA of a text encoder.
    """
    if file is not None:
        return EncoderLoRA.load(file)
    return None if start is None else start.encoder_lora


def take_parameters(generator: LoRAGenerator, start: Checkpoint) -> None:
    """Load the parameters of an artefact into `generator`.

    Raises:
        ConfigError: the artefact has another base, LoRASpec or size.
    """
    theirs = (start.generator.model, start.generator.lora, start.generator.config)
    if theirs != (generator.model, generator.lora, generator.config):
        raise ConfigError(
            f"the generator to start from, {start.manifest.digest[:12]}, has another base, LoRASpec or size than this "
            "fit"
        )
    generator.load_state_dict(start.generator.state_dict())


def condition_map(tasks: Sequence[Task], source: TextEncoder, target: TextEncoder) -> ConditionMap:
    """The map from the vectors of `source` to those of `target`: ridge regression on texts of these tasks."""
    texts = [text for task in tasks for text in task.seen_descriptions[:_WORDINGS]]
    texts += example_lines([(row.input, row.output) for task in tasks for row in task.train[:_EXAMPLES]])
    texts = list(dict.fromkeys(texts))
    x, y = (encoder.encode(texts).double() for encoder in (source, target))  # (n, d) each
    mean_x, mean_y = x.mean(0), y.mean(0)
    x, y = x - mean_x, y - mean_y
    n, d = x.shape
    # noise of length l adds n l^2 / d to each eigenvalue of X^T X
    ridge = n * _NOISE**2 / d * torch.eye(d, dtype=x.dtype)
    weight = torch.linalg.solve(x.T @ x + ridge, x.T @ y).T
    r2 = 1 - float((y - x @ weight.T).square().sum() / y.square().sum())
    return ConditionMap(weight, mean_y - weight @ mean_x, r2)


def read_through(generator: LoRAGenerator, mapping: ConditionMap) -> None:
    """Compose the generator's first layer with a map, in place: it then reads the conditions of the map's source."""
    read, scale = generator.read, generator.config.condition_size**0.5
    with torch.no_grad():
        old = read.weight.double()
        # the layer reads s c, so W (s (M c + m)) + b = (W M) (s c) + (W m s + b)
        read.bias.add_((old @ mapping.offset * scale).to(read.bias))
        read.weight.copy_(old @ mapping.weight)
