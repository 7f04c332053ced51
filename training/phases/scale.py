"""`python -m training scale`: gradients, memory and cost on every base, a short fit, and data-parallel fits.

For each base: a check that all A and B get gradients, with and without activation checkpointing, and the peak memory;
tokens per second, bytes, and seconds by phase; and a short fit whose artefact is loaded to make and apply an adapter.
On one base, two processes must give the loss curve of one.
"""

from __future__ import annotations

import shlex
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from llgbm.adapters.peft_io import load_peft, save_peft
from llgbm.base import Base, load_base
from llgbm.checkpoint import load_generator
from llgbm.config import GeneratorConfig, LoRASpec, default_lora
from llgbm.errors import ConfigError
from llgbm.evaluation import score_rows
from llgbm.linears.frozen_linear import Storage
from llgbm.pretrained.find import BASE_0_5B, TEXT_ENCODER
from llgbm.prompting import AdapterMaker, AdapterRequest
from llgbm.training import TrainingConfig
from training.adapters.delta_store import ProbeConfig
from training.phases.cost import CostConfig, measure_base, measure_generators
from training.phases.gradient_check import check_in_own_process
from training.recipe import fit
from training.recipe.progress_check import CheckConfig
from training.recipe.sampler import SamplerConfig
from training.runs.log import RunLog
from training.runs.metrics import read_steps
from training.runs.parallel import launch
from training.runs.results import command_of, write_result
from training.tasks.format import Task, load_tasks, tasks_digest
from training.tasks.rows import eval_row


@dataclass(frozen=True)
class Config:
    """Settings of the measurements."""

    workdir: Path = Path("runs/scale")
    """Folder of the short fits and the result."""
    bases: tuple[str, ...] = (BASE_0_5B,)
    """Hub ids or folders of the bases."""
    base_storage: Storage = "float32"
    """How the bases' Linear weights are stored."""
    text_encoder: str = TEXT_ENCODER
    """Hub id or folder of the frozen text encoder."""
    folder: Path = Path("tasks/train")
    """Folder of task files of the short fits."""
    probes: ProbeConfig = field(default_factory=ProbeConfig)
    cost: CostConfig = field(default_factory=CostConfig)
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    groups: int = 4
    """Tasks per step of a short fit."""
    fit_steps: int = 4
    """Steps of the short fit on every base; 0 skips it."""
    parallel_steps: int = 3
    """Steps of the fits with one and several processes; 0 skips them."""
    processes: int = 2
    """Processes of the data-parallel fit, on the first of the bases."""


def run(config: Config) -> None:
    """Measure, and write `{workdir}/results/scale.json`."""
    with RunLog(config.workdir, "scale", config) as log:
        tasks = load_tasks(config.folder)
        found: dict[str, Any] = {"bases": []}
        with log.progress("bases", total=len(config.bases)) as progress:
            for done, name in enumerate(config.bases, 1):
                found["bases"].append(measure(config, name, tasks))
                progress.update(done, name)
        if config.parallel_steps:
            found["parallel"] = compare_processes(config)
        write_result(log, "scale", config, found, data_digest=tasks_digest(tasks))


def measure(config: Config, name: str, tasks: list[Task]) -> dict[str, Any]:
    """All measurements of one base, for JSON."""
    began = time.monotonic()
    base = load_base(name, storage=config.base_storage)
    loaded = time.monotonic() - began
    lora = default_lora(base.spec)
    row: dict[str, Any] = {"base": base.spec.base_id, "preset": base.spec.name, "storage": config.base_storage}
    row |= {"rank": lora.rank, "load_seconds": loaded}
    row |= measure_base(base, lora, config.probes.build(), config.cost)
    row["generators"] = measure_generators(base, lora, config.cost)
    row["fit"] = short_fit(config, name, base, lora, tasks) if config.fit_steps else None
    del base  # each check loads its own
    row["gradients"] = {
        label: asdict(
            check_in_own_process(
                name, config.base_storage, lora.rank, config.cost.rows, config.cost.row_tokens, recompute=recompute
            )
        )
        for label, recompute in (("plain", False), ("recomputed", True))
    }
    return row


def short_fit(config: Config, name: str, base: Base, lora: LoRASpec, tasks: list[Task]) -> dict[str, Any]:
    """Run a short fit, load its artefact, and generate, write, read and apply an adapter.

    Raises:
        ConfigError: the adapter that was read differs from the one written, or has no effect.
    """
    settings = _fit_config(config, name, config.workdir / base.spec.name.replace("/", "--"), config.fit_steps)
    fit.run(settings)
    checkpoint = load_generator(settings.workdir / "generator")
    maker = AdapterMaker(checkpoint, checkpoint.text_encoder(config.text_encoder), base=name)
    (made,) = maker.make([AdapterRequest((tasks[0].unseen_descriptions[0],))])
    folder = settings.workdir / "adapter"
    save_peft(made.weights, folder, base_id=checkpoint.manifest.base_id)
    weights, base_id = load_peft(folder)
    rows = [eval_row(base, example) for example in tasks[0].test[:2]]
    plain, adapted = score_rows(base, [(None, rows), (weights, rows)])
    moved = float(np.mean([abs(a.log_likelihood - p.log_likelihood) for a, p in zip(adapted, plain, strict=True)]))
    if base_id != base.spec.base_id or weights.spec != lora or not moved > 0:
        raise ConfigError(
            f"the adapter in {folder} has no effect on {base.spec.base_id}, or is another one; delete it and run again"
        )
    steps = read_steps(settings.workdir / "metrics" / "fit.jsonl")
    seconds = sum(line["seconds"] for line in steps)
    return {
        "steps": len(steps),
        "first_loss": steps[0]["loss"],
        "last_loss": steps[-1]["loss"],
        "step_seconds": float(np.median([line["seconds"] for line in steps])),
        "tokens_per_second": sum(line["tokens"] for line in steps) / seconds,
        "seconds": seconds,
        "artefact_bytes": sum(p.stat().st_size for p in (settings.workdir / "generator").iterdir()),
        "encode_seconds": made.seconds["encode"],
        "generate_seconds": made.seconds["generate"],
        "log_likelihood_moved": moved,
    }


def compare_processes(config: Config) -> dict[str, Any]:
    """Run the same fit in one process and in several, and compare the losses.

    A stopped comparison is resumed, and a finished one is read again. Delete its folders to repeat it.
    """
    name = config.bases[0]
    curves = []
    for processes in (1, config.processes):
        settings = _fit_config(config, name, config.workdir / f"processes-{processes}", config.parallel_steps)
        words = shlex.split(command_of("fit", settings))[3:]
        launch(words, processes)
        steps = read_steps(settings.workdir / "metrics" / "fit.jsonl")
        curves.append([cast(float, line["loss"]) for line in steps])
    one, several = curves
    return {
        "base": name,
        "processes": config.processes,
        "losses_of_one": one,
        "losses_of_several": several,
        "largest_relative_difference": max(abs(a - b) / abs(a) for a, b in zip(one, several, strict=True)),
    }


def _fit_config(config: Config, base: str, workdir: Path, steps: int) -> fit.Config:
    return fit.Config(
        workdir=workdir,
        tasks=config.folder,
        base=base,
        base_storage=config.base_storage,
        text_encoder=config.text_encoder,
        generator=config.generator,
        sampler=replace(SamplerConfig(), groups=config.groups),
        training=TrainingConfig(steps=steps, warmup_steps=1),
        check=CheckConfig(every=0),
    )
