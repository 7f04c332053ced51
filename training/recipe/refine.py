"""`python -m training refine`: an adapter that learns from your own examples, without a service.

    python -m training refine prompt="Route the ticket to a team." examples=tickets.csv out=tickets

It starts from the adapter that the generator makes from the prompt, from a PEFT folder, or, with neither, from nothing.
`llgbm.refining.example_file` has the formats of examples. It writes a PEFT folder, and prints the score on held-out
examples. If refining did not help on them, it writes the start.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from llgbm.adapters.peft_io import load_peft_for, require_replaceable, save_peft
from llgbm.base import Base, load_base
from llgbm.checkpoint import load_generator
from llgbm.errors import ConfigError
from llgbm.linears.frozen_linear import Storage, fastest_training_storage
from llgbm.lora import LoRAWeights
from llgbm.prompting import AdapterRequest
from llgbm.refining.example_file import read_examples
from llgbm.refining.refine import most_steps, refine
from llgbm.refining.settings import HeldOutScore, RefineConfig, Refined, RefineStep
from training.recipe.generator_base import base_of, maker_of
from training.runs.log import RunLog


@dataclass(frozen=True)
class Config:
    """Settings of refining."""

    examples: Path = Path("examples.jsonl")
    """File with the examples: .jsonl or .json with input and output or chat messages, .csv or .tsv with two columns, or
    .txt with lines INPUT => OUTPUT."""
    prompt: str = ""
    """Description of the task. It makes the start, and stands in the context of a part of the examples."""
    start: Path | None = None
    """A PEFT folder to start from; none starts from the prompt's adapter, or from PEFT's initialisation without a
    prompt (`settings.description` then has the task)."""
    checkpoint: Path = Path("checkpoints/qwen2.5-0.5b")
    """The generator that makes the start."""
    text_encoder: str = ""
    """Hub id or folder of the text encoder; by default the checkpoint's."""
    base: str = ""
    """Hub id or folder of the frozen base; by default the checkpoint's."""
    base_storage: Storage | None = None
    """How the base's Linear weights are stored; none takes the fastest on the device."""
    device: str = "cpu"
    """A torch device, cpu or cuda."""
    validation: Path | None = None
    """File with examples that choose the number of steps in place of held-out ones."""
    settings: RefineConfig = field(default_factory=RefineConfig)
    """Settings of the training; `settings.description` replaces the prompt in the context."""
    out: Path = Path("refined")
    """PEFT folder to write."""
    workdir: Path = Path("runs/refine")
    """Folder of the log and the metrics."""


def run(config: Config) -> None:
    """Write the adapter's folder, and print the scores.

    Raises:
        TaskFormatError: a line of a file is not an example; the message names it.
        AdapterMismatchError: the start is an adapter of another base.
        ConfigError: `out` is a file or holds other files, or refining did not help and there is no start to write.
    """
    require_replaceable(config.out)
    rows = [example.row for example in read_examples(config.examples)]
    validation = [example.row for example in read_examples(config.validation)] if config.validation else []
    with RunLog(config.workdir, "refine", config) as log:
        base, start = _base_and_start(config)
        settings = replace(config.settings, description=config.settings.description or config.prompt.strip() or None)
        with log.progress("refine", total=most_steps(len(rows), settings, validation=len(validation))) as progress:

            def on_step(step: RefineStep) -> None:
                log.metrics(step=step.step, series="", loss=step.loss, phase=step.phase)
                progress.update(step.step, f"loss {step.loss:.3f}")

            refined = refine(base, start, rows, settings, validation=validation, on_step=on_step)
        if refined.best is None:
            raise ConfigError(f"{_summary(refined)}; nothing is written, since the plain base is better on them")
        save_peft(refined.best, config.out, base_id=base.spec.base_id)
        log.record_artefact(
            config.out, kind="adapter", base_revision=base.revision, seconds=refined.seconds, steps=refined.steps
        )
    print(f"{config.out}: {_summary(refined)}")


def _base_and_start(config: Config) -> tuple[Base, LoRAWeights | None]:
    storage = config.base_storage or fastest_training_storage(config.device)
    if config.start is None and config.prompt:
        checkpoint = load_generator(config.checkpoint)
        (made,) = maker_of(checkpoint, config.text_encoder, config.base).make([AdapterRequest((config.prompt,))])
        return base_of(checkpoint, config.base, storage, config.device), made.weights
    base = load_base(
        config.base or load_generator(config.checkpoint).manifest.base_id, storage=storage, device=config.device
    )
    if config.start is None:
        return base, None
    return base, load_peft_for(config.start, base.spec.base_id)


def _summary(refined: Refined) -> str:
    """One line about a result."""
    trained = f"{refined.steps} steps, {refined.seconds:.0f} s"
    if refined.held_out is None or refined.start_held_out is None:
        return f"{trained}; too few examples to hold any out"
    scores = f"held-out examples: start {_score(refined.start_held_out)}, refined {_score(refined.held_out)}"
    return f"{trained}; {scores}" + (
        "" if refined.helped else "; refining did not help, so the start is the better choice"
    )


def _score(score: HeldOutScore) -> str:
    return f"{score.accuracy:.0%} right, log-likelihood {score.log_likelihood:.2f}"
