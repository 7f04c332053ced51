"""What commands start from: the shipped generator, and weights fetched with a progress bar."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from llgbm.checkpoint import load_generator
from llgbm.pretrained.find import resolve_pretrained
from llgbm.prompting import AdapterMaker
from service.settings import DEFAULT_CHECKPOINT


def load_maker(checkpoint: Path | None, text_encoder: str | None, base: str | Path | None = None) -> AdapterMaker:
    """The generator and its text encoder, which is fetched if need be, as is the base if its vocabulary is read.

    Args:
        checkpoint: folder of the generator; None for the one that comes with LLGBM.
        text_encoder: hub id or folder; None for the one that the generator was trained with.
        base: hub id or folder; None for the generator's.

    Raises:
        CheckpointError: there is no generator, or it was trained with another text encoder.
        AdapterMismatchError: its LoRA is for another text encoder.
        PretrainedNotFoundError: no source has the encoder.
    """
    generator = load_generator(checkpoint or DEFAULT_CHECKPOINT)
    encoder = generator.text_encoder(text_encoder)
    fetch(encoder.encoder_id)
    if generator.word_scorer is not None:
        fetch(str(base or generator.manifest.base_id))
    maker = AdapterMaker(generator, encoder, base=base)
    maker.require_training_vectors()
    return maker


def fetch(name_or_path: str) -> Path:
    """The local folder of frozen weights, fetched with a progress bar on stderr if this machine has none.

    Where stderr is no terminal, each stage is a line.

    Raises:
        PretrainedNotFoundError: no source has them.
    """
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    bars = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    task = bars.add_task(name_or_path, total=None)
    seen: set[str] = set()

    def report(stage: str, done: int, total: int | None) -> None:
        if stage not in seen and not console.is_terminal:
            console.print(f"{name_or_path}: {stage}", markup=False, highlight=False)
        seen.add(stage)
        bars.start()  # only now: weights that are here already draw nothing
        bars.update(task, description=f"{name_or_path}: {stage}", completed=done, total=total)

    try:
        return resolve_pretrained(name_or_path, progress=report)
    finally:
        bars.stop()
