"""`python -m training study`: one fit in several ways, and what each way is worth on the quality table.

An arm is a list of changes to the fit, such as `num_tasks=50` or `distillation=0`; all else is equal. An arm may match
teachers instead, as the command `match` does; then the delta cosines of all arms are measured too. Every arm is fitted
and evaluated for every seed. Finished ones are kept in `{workdir}/arms`, and a fit that was stopped goes on, so a study
goes on where it was. All fits share one file of text embeddings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache, partial, reduce
from pathlib import Path
from typing import Any, cast

from llgbm.ablations import AblationConfig, run_ablations
from llgbm.checkpoint import load_generator
from llgbm.dataset import RealAdapterDataset
from llgbm.errors import ConfigError
from training import evaluate, fit, match
from training.adapter_split import adapters_digest
from training.conditions import TEXTS_FILE
from training.config import build, config_digest
from training.config_values import Tree, merged, parse_override
from training.match_measures import score_cases, summarise
from training.match_setup import Material, load_material, read_split_digest
from training.metrics_file import read_steps
from training.results import kept, read_result, write_result
from training.runlog import RunLog
from training.tasks import tasks_digest

METHODS = ("generated", "generated, wrong description", "generated + description", "shared adapter + description")
"""Methods of the quality table that a study asks for, unless it says otherwise."""


@dataclass(frozen=True)
class Config:
    """Settings of a study."""

    workdir: Path = Path("runs/study")
    """Folder for the fits, the finished cells and the result."""
    arms: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Changes to `fit` by the arm's name, as dotted overrides; none for the fit as it is."""
    matches: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """More arms, as changes to `match`, that match a generator to teachers."""
    only: tuple[str, ...] = ()
    """Only these arms; empty for all."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of each arm."""
    fit: fit.Config = field(default_factory=fit.Config)
    """The fit; its workdir is given by the arm."""
    match: match.Config = field(default_factory=match.Config)
    """What `matches` change; its workdir is the teachers' folder, and its name is given by the arm."""
    evaluate: evaluate.Config = field(default_factory=lambda: evaluate.Config(methods=METHODS))
    """The evaluation of each; its workdir, output, checkpoint and seeds are given by the arm."""

    def __post_init__(self) -> None:
        for name in (*self.arms, *self.matches):
            if not name.replace("-", "").replace("_", "").isalnum():
                raise ConfigError(f"arms: {name!r} names a folder; use letters, digits, - and _")
            arm_config(self, name, 0)
        if unknown := [name for name in self.only if name not in self.arms | self.matches]:
            raise ConfigError(f"only: {unknown[0]!r} is none of {', '.join(self.arms | self.matches)}")


def run(config: Config) -> None:
    """Run what is missing, and write `study.json`: for every arm what each method came to on each group of tasks.

    Raises:
        ConfigError: there are no arms.
    """
    with RunLog(config.workdir, "study", config) as log:
        arms = {n: made for n, made in (config.arms | config.matches).items() if n in config.only or not config.only}
        material = cache(partial(load_material, config.match, log)) if config.matches else None

        def arm(name: str, seed: int) -> dict[str, float]:
            metrics = run_arm(config, name, seed, material)
            log.logger.info("arm", arm=name, seed=seed, **metrics)
            return metrics

        found = run_ablations(AblationConfig(tuple(arms), config.seeds), arm)
        changes = {name: list(overrides) for name, overrides in arms.items()}
        write_result(log, "study", config, found.to_dict() | {"changes": changes, "steps": config.fit.training.steps})


def arm_config(config: Config, name: str, seed: int) -> fit.Config | match.Config:
    """What an arm runs: the fit, or the match, with the arm's changes.

    Raises:
        ConfigError: a change of what there is not.
    """
    if name in config.matches:
        matched = cast(match.Config, _changed(config.match, config.matches[name], f"matches.{name}"))
        return replace(matched, name=f"{name}-s{seed}", training=replace(matched.training, seed=seed))
    fitted = cast(fit.Config, _changed(config.fit, config.arms[name], f"arms.{name}"))
    return replace(fitted, workdir=config.workdir / f"{name}-s{seed}", training=replace(fitted.training, seed=seed))


def run_arm(config: Config, name: str, seed: int, material: Callable[[], Material] | None) -> dict[str, float]:
    """What one arm came to with one seed, now or in an earlier run with the same settings, tasks, start and teachers.

    Args:
        material: loads the teachers whose deltas the generators' are compared with; none to leave that out.

    Returns:
        `GROUP: METHOD`, the accuracy; `GROUP, log-likelihood: METHOD`, the mean log-likelihood of the right answers
        in nats a token, which moves where exact match is still zero; the delta cosines with the teachers of training
        tasks and of those held out; and the seconds that the fit took.
    """
    arm = arm_config(config, name, seed)
    evaluation = replace(
        config.evaluate,
        workdir=config.workdir / "evaluate",
        output=config.workdir / f"{name}-s{seed}" / "quality.json",
        checkpoint=arm.artefact,
        seeds=(seed,),
    )

    def metrics() -> dict[str, Any]:
        if isinstance(arm, match.Config):
            match.run(arm)
        else:
            fit.run(arm, texts=config.workdir / TEXTS_FILE)
        evaluate.run(evaluation)
        return {
            "metrics": _accuracies(evaluation.output) | _cosines(arm.artefact, material) | {"seconds": _seconds(arm)}
        }

    measured = tasks_digest([task for column in evaluate.tasks_of(evaluation) for task in column])
    digest = f"{_made_with(arm)} {config_digest(evaluation)} {measured}"
    if material is not None:
        digest += f" {read_split_digest(config.match)}"
    found = kept(config.workdir / "arms" / f"{name}-s{seed}.json", digest, metrics)
    return cast(dict[str, float], found["metrics"])


def _made_with(arm: fit.Config | match.Config) -> str:
    """What the generator of an arm depends on: its settings, and what stands in the places that they name."""
    if isinstance(arm, match.Config):
        return match.fit_key(arm, read_split_digest(arm))
    tasks, made_up = fit.training_tasks(arm)
    start = "" if arm.start is None else load_generator(arm.start).manifest.digest
    teachers = "" if arm.teachers is None else adapters_digest(RealAdapterDataset(arm.teachers))
    return f"{config_digest(arm)}.{tasks_digest([*tasks, *made_up])}.{start}.{teachers}"


def _changed(settings: fit.Config | match.Config, overrides: tuple[str, ...], where: str) -> object:
    tree: Tree = reduce(merged, map(parse_override, overrides), {})
    return build(type(settings), tree, where, settings)


def _accuracies(table: Path) -> dict[str, float]:
    values: dict[str, float] = {}
    for group, column in read_result(table)["columns"].items():
        for method, row in column["methods"].items():
            if row["accuracy"] is not None:
                name = group.replace("_", " ")
                values[f"{name}: {method}"] = row["accuracy"]
                values[f"{name}, log-likelihood: {method}"] = row["log_likelihood"]
    return values


def _cosines(checkpoint: Path, material: Callable[[], Material] | None) -> dict[str, float]:
    if material is None:
        return {}
    generator, loaded = load_generator(checkpoint).generator, material()
    cases = {"training": loaded.train_cases, "held-out": loaded.heldout_cases}
    return {
        f"delta cosine, {name} tasks": summarise(score_cases(generator, loaded.meter, found), name)[f"{name}_cosine"]
        for name, found in cases.items()
        if found
    }


def _seconds(arm: fit.Config | match.Config) -> float:
    """Of all steps, and of the calibration of a head."""
    if isinstance(arm, match.Config):
        found = read_result(arm.result)["metrics"]
        return float(found["seconds"] + found["calibration_seconds"])
    return float(sum(line["seconds"] for line in read_steps(arm.workdir / "metrics" / "fit.jsonl")))
