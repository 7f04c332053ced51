"""`python -m training encoder`: tunes the text encoder to tell tasks apart, and writes the change as a LoRA.

    python -m training encoder tasks=none families=families/train 'hidden_families=[markup, votes]' seconds=300
    python -m training fit --config training/configs/recipe.yaml encoder_lora=runs/encoder/text_encoder.safetensors

A sentence encoder puts "the first letter" next to "the last letter". Here two wordings of a task are drawn together and
those of other tasks apart (contrastive learning with negatives from the batch, as SimCSE, arXiv 2104.08821). Only the
weights of the Linears are trained. The run takes minutes and does not resume. Set `hidden_families` as for the fit:
calibration needs families that neither the generator nor its text encoder has seen.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from llgbm.conditioning.encoder_lora import EncoderLoRA, require_rank
from llgbm.conditioning.sentence_model import SentenceModel
from llgbm.errors import ConfigError
from llgbm.pretrained.find import TEXT_ENCODER, pretrained_revision, resolve_pretrained
from llgbm.prompting import TextEncoder, condition_of, example_lines
from llgbm.text_encoder import PretrainedTextEncoder
from training.recipe.wording_pairs import Pair, PairSampler
from training.runs.log import RunLog
from training.runs.results import write_result
from training.tasks.families import load_families
from training.tasks.format import Task, tasks_digest
from training.tasks.training_set import TrainingTasks

LORA_FILE = "text_encoder.safetensors"
_MAX_GRAD_NORM = 1.0
_WARMUP_STEPS = 20
"""Linear warm-up: Adam's averages come from few batches in its first steps."""
_TEMPERATURE = 0.05
"""Of the softmax over the cosines of a batch, as SimCSE."""
_KNOWN_WORDINGS, _ASKED_WORDINGS, _EXAMPLES = 4, 2, 3
"""Per measured task: seen wordings to find, unseen ones to find them with, and examples to find them with."""


@dataclass(frozen=True)
class Config(TrainingTasks):
    """Settings of tuning the text encoder."""

    workdir: Path = Path("runs/encoder")
    """Folder of the log and of the LoRA, `text_encoder.safetensors`."""
    heldout_families: Path | None = None
    """Folder of family files to measure on before and after; none measures nothing."""
    text_encoder: str = TEXT_ENCODER
    """Hub id or folder of the text encoder."""
    rank: int = 32
    """Rank of the LoRA."""
    steps: int = 600
    """Maximum number of optimiser steps."""
    seconds: float = 0.0
    """Budget of wall time in seconds; 0 for none. The run ends when the first of the two budgets is spent, and the
    learning rate falls to 0 there. A run with a time budget does not repeat exactly."""
    learning_rate: float = 1e-4
    """Peak learning rate of AdamW."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the matrix products (autocast). bfloat16 is faster on a CPU with instructions for it."""
    seed: int = 0
    """Seed of the batches and of dropout."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.rank < 1 or self.seconds < 0 or self.learning_rate <= 0:
            raise ConfigError("steps and rank must be at least 1, seconds not negative, and learning_rate positive")

    @property
    def lora_file(self) -> Path:
        """The LoRA's file."""
        return self.workdir / LORA_FILE

    def spent(self, step: int, seconds: float) -> float:
        """Fraction of the budget that is spent after `step` steps in `seconds`; 1 or more ends the run."""
        return max(step / self.steps, seconds / self.seconds if self.seconds else 0.0)

    def learning_rate_at(self, step: int, spent: float) -> float:
        """Learning rate of `step`, counted from 0, with a fraction `spent` of the budget: warm-up and linear decay."""
        return self.learning_rate * min(1.0, (step + 1) / _WARMUP_STEPS) * (1 - spent)


@dataclass(frozen=True)
class TuningStep:
    """A step of `tune`, for the log.

    Attributes:
        step: counted from 0.
        loss: mean cross entropy, in nats.
        accuracy: fraction of the wordings whose nearest other text in the batch is of the same task.
        learning_rate: of this step.
    """

    step: int
    loss: float
    accuracy: float
    learning_rate: float


def run(config: Config) -> None:
    """Tune, write `{workdir}/text_encoder.safetensors`, and measure on held-out families before and after.

    Raises:
        ConfigError: there are too few tasks, or the loss is not finite.
        TaskFormatError: a folder, a task, a family or the file of wordings is invalid.
    """
    pools = config.training_set()
    heldout = load_families(config.heldout_families) if config.heldout_families else []
    sampler = PairSampler(pools, config.seed)
    with RunLog(config.workdir, "encoder", config) as log:
        folder = resolve_pretrained(config.text_encoder)
        model = SentenceModel(folder)
        tuned_on = {"encoder": config.text_encoder, "revision": pretrained_revision(folder)}
        with log.progress("encoder", total=config.steps) as progress:

            def on_step(state: TuningStep) -> None:
                log.metrics(series="", **asdict(state))
                progress.update(state.step + 1, f"loss {state.loss:.3f}")

            lora = replace(tune(model, sampler, config, on_step), tuned_on=tuned_on)
        lora.save(config.lora_file)
        digest = tasks_digest(pools.all)
        log.record_artefact(config.lora_file, kind="encoder_lora", data_digest=digest, digest=lora.digest)
        found = {}
        for name, change in (("before", None), ("after", lora)) if heldout else ():
            found[name] = nearest_task_accuracy(PretrainedTextEncoder(config.text_encoder, lora=change), heldout)
            log.logger.info("nearest task", when=name, **found[name])
        result = {"lora": lora.digest, "heldout_tasks": len(heldout), "nearest_task": found}
        write_result(log, "encoder", config, result, data_digest=digest)


def tune(
    model: SentenceModel,
    pairs: Callable[[int], Sequence[Pair]],
    config: Config,
    on_step: Callable[[TuningStep], None],
) -> EncoderLoRA:
    """Train the model's Linears in place; returns the nearest LoRA to their change.

    Raises:
        ConfigError: the rank is too large for the model, or the loss became NaN or infinite.
    """
    linears = model.linears
    before = {name: linear.weight.detach().clone() for name, linear in linears.items()}
    require_rank(config.rank, before)  # before the work, not after it
    trained = [linear.weight.requires_grad_() for linear in linears.values()]
    optimiser = torch.optim.AdamW(trained, lr=config.learning_rate, weight_decay=0.0)
    low = config.dtype == "bfloat16"
    started, step = time.monotonic(), 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)  # of dropout
        model.train()
        while (spent := config.spent(step, time.monotonic() - started)) < 1:
            rate = config.learning_rate_at(step, spent)
            for group in optimiser.param_groups:
                group["lr"] = rate
            with torch.autocast("cpu", torch.bfloat16, enabled=low):
                left, right = vectors_of(model, pairs(step))
            loss, accuracy = contrastive_loss(left, right, _TEMPERATURE)
            if not torch.isfinite(loss):
                raise ConfigError(f"loss {float(loss.detach())} at step {step}; lower learning_rate")
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, _MAX_GRAD_NORM)
            optimiser.step()
            on_step(TuningStep(step, float(loss.detach()), accuracy, rate))
            step += 1
    model.eval().requires_grad_(False)
    after = {name: linear.weight for name, linear in linears.items()}
    return EncoderLoRA.of_difference(before, after, config.rank)


def vectors_of(model: SentenceModel, pairs: Sequence[Pair]) -> tuple[Tensor, Tensor]:
    """Unit vectors (n, hidden) float32 of the wordings, and the conditions (n, hidden) of the other texts."""
    texts = [pair.wording for pair in pairs] + [text for pair in pairs for text in pair.others]
    vectors = F.normalize(model.pooled(texts), dim=-1)
    blocks = vectors[len(pairs) :].split([len(pair.others) for pair in pairs])
    return vectors[: len(pairs)], torch.stack([condition_of(block[:0], block) for block in blocks])


def contrastive_loss(left: Tensor, right: Tensor, temperature: float) -> tuple[Tensor, float]:
    """Symmetric cross entropy of finding each text's partner in the batch by cosine.

    Args:
        left, right: unit vectors (n, d) float32; rows of the same number are a pair.

    Returns:
        The loss, a scalar, and the fraction of the rows of `left` that are nearest to their partner.
    """
    logits = left @ right.T / temperature  # (n, n)
    partner = torch.arange(len(left))
    loss = (F.cross_entropy(logits, partner) + F.cross_entropy(logits.T, partner)) / 2
    return loss, float((logits.detach().argmax(1) == partner).float().mean())


def nearest_task_accuracy(encoder: TextEncoder, tasks: Sequence[Task]) -> Mapping[str, float]:
    """How often a new text on a task is nearest to a wording of that task, by cosine.

    Args:
        tasks: the candidates, each with its first four seen wordings.

    Returns:
        Fractions for the first two `unseen wordings` of each task, and for the condition of its first three `examples`.
    """
    known = [(i, text) for i, task in enumerate(tasks) for text in task.seen_descriptions[:_KNOWN_WORDINGS]]
    asked = [(i, text) for i, task in enumerate(tasks) for text in task.unseen_descriptions[:_ASKED_WORDINGS]]
    shown = [example_lines([(row.input, row.output) for row in task.train[:_EXAMPLES]]) for task in tasks]
    candidates, owner = encoder.encode([text for _, text in known]), torch.tensor([i for i, _ in known])
    lines = encoder.encode([line for block in shown for line in block]).split([len(block) for block in shown])
    queries = {
        "unseen wordings": (encoder.encode([text for _, text in asked]), torch.tensor([i for i, _ in asked])),
        "examples": (torch.stack([condition_of(block[:0], block) for block in lines]), torch.arange(len(tasks))),
    }
    return {
        name: round(float((owner[(vectors @ candidates.T).argmax(1)] == right).float().mean()), 4)
        for name, (vectors, right) in queries.items()
    }
