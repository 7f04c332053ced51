"""The start of a fit: the generator of another artefact, also one whose text encoder has another LoRA."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from llgbm.base import Base
from llgbm.checkpoint import Checkpoint
from llgbm.conditioning.answer_words import WordScorer
from llgbm.conditioning.encoder_lora import EncoderLoRA, lora_digest
from llgbm.errors import ConfigError
from llgbm.fitting.objectives import generated_groups
from llgbm.fitting.task_losses import label_logits
from llgbm.functional import FunctionalLoRA
from llgbm.generator import LoRAGenerator
from llgbm.lora import LoRAWeights
from llgbm.packed.batch import PackedBatch, TrainingBatch, pack
from llgbm.prompting import TextEncoder, example_lines
from training.recipe.answer_words import load_scorer
from training.tasks.format import Task

_WORDINGS, _EXAMPLES = 5, 1
"""Texts of each task that a map between two encoders is fitted on."""
_ROW_STEPS, _ROW_RIDGE = 12, 0.3
"""Batches that `begin_word_rows` reads, and its ridge relative to the mean variance of an input."""
_ROW_GAINS = (1.2, 0.6)
"""Gains of the answer words in the beginning; between the best of three on held-out logits of an earlier generator."""
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
    theirs, words = start.generator, generator.config.answer_words
    forgets_words = theirs.config.answer_words and not words
    sizes = (theirs.model, theirs.lora, replace(theirs.config, answer_words=words))
    if forgets_words or sizes != (generator.model, generator.lora, generator.config):
        raise ConfigError(
            f"the generator to start from, {start.manifest.digest[:12]}, has another base, LoRASpec or size than this "
            "fit"
        )
    # a start without answer words leaves theirs as they are in a fresh generator
    generator.load_state_dict(generator.state_dict() | theirs.state_dict())


def word_scorer_of(file: Path | None, start: Checkpoint | None, lora: EncoderLoRA | None) -> WordScorer | None:
    """The scorer of answer words of a fit: that of the file, else that of the start, else none.

    Args:
        lora: of the fit's text encoder.

    Raises:
        CheckpointError: the file is not a scorer of answer words, or was fitted to another LoRA of the text encoder.
    """
    if file is not None:
        return load_scorer(file, lora_digest(lora))
    return None if start is None else start.word_scorer


def begin_word_rows(generator: LoRAGenerator, base: Base, sampler: Callable[[int], TrainingBatch]) -> None:
    """Set the rows of A for the answer words, in place: a ridge regression on the states of training rows.

    The first row gives about the size of the last hidden state where an answer begins, and 0 where it goes on; the
    second the other way round. So the words are raised by about their gains from the first step on.
    """
    inputs, sizes, first = [], [], []
    functional = FunctionalLoRA(base.model)
    for step in range(_ROW_STEPS):
        with torch.no_grad():
            weights, rows = generated_groups(generator, sampler(step), base.activation_dtype)
        packed = pack(rows).on(base.device)
        given, written = _last_states(base, functional, packed, weights)
        inputs.append(given.float().cpu())
        sizes.append(written.float().square().mean(-1).sqrt().cpu())
        # labels are in the order of rows, so a row's first one is where the row's number changes
        first.append(torch.cat([torch.tensor([True]), packed.label_row.diff().cpu() != 0]))
    x, size = torch.cat(inputs), torch.cat(sizes)  # (n, in), (n,)
    begins = torch.cat(first).float()
    wanted = torch.stack([begins, 1 - begins], 1) * size[:, None] / generator.lora.scaling  # (n, slots)
    gram = x.T @ x / len(x)
    ridge = _ROW_RIDGE * gram.diagonal().mean() * torch.eye(len(gram))
    found = torch.linalg.solve(gram + ridge, x.T @ wanted / len(x)).T
    with torch.no_grad():
        generator.word_rows.copy_(found * torch.tensor(_ROW_GAINS)[:, None])


@torch.no_grad()
def _last_states(
    base: Base, functional: FunctionalLoRA, packed: PackedBatch, weights: Sequence[LoRAWeights]
) -> tuple[Tensor, Tensor]:
    """At each label, the input (labels, in) of the last down_proj, and the state (labels, hidden) before the norm."""
    places = packed.flat_places(packed.label_index)
    kept: list[Tensor] = []

    def keep(_: torch.nn.Module, given: tuple[Tensor, ...]) -> None:
        kept.append(given[0].flatten(0, -2)[places])

    read = (f"model.layers.{base.spec.num_layers - 1}.mlp.down_proj", "model.norm")
    hooks = [base.model.get_submodule(name).register_forward_pre_hook(keep) for name in read]
    try:
        label_logits(base, functional, packed, weights)
    finally:
        for hook in hooks:
            hook.remove()
    given, written = kept
    return given, written


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
