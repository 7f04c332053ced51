"""`python -m training study`: one fit in several ways, and what each way is worth on the quality table.

An arm is a list of changes to the fit, such as `num_tasks=50` or `distillation=0`; all else is equal, steps too, so
arms cost about the same. Every arm is fitted and evaluated for every seed. Finished ones are kept in `{workdir}/arms`,
and a fit that was stopped goes on, so a study goes on where it was. All share one file of text embeddings.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import reduce
from pathlib import Path
from typing import Any, cast

from llgbm.ablations import AblationConfig, run_ablations
from llgbm.errors import ConfigError
from training import evaluate, fit
from training.config import build, config_digest
from training.config_values import Tree, merged, parse_override
from training.results import kept, read_result, write_result
from training.runlog import RunLog

METHODS = ("generated", "generated, wrong description", "generated + description", "shared adapter + description")
"""Methods of the quality table that a study asks for, unless it says otherwise."""


@dataclass(frozen=True)
class Config:
    """Settings of a study."""

    workdir: Path = Path("runs/study")
    """Folder for the fits, the finished cells and the result."""
    arms: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Changes to `fit` by the arm's name, as dotted overrides; none for the fit as it is."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of each arm."""
    fit: fit.Config = field(default_factory=fit.Config)
    """The fit; its workdir is given by the arm."""
    evaluate: evaluate.Config = field(default_factory=lambda: evaluate.Config(methods=METHODS))
    """The evaluation of each; its workdir, output, checkpoint and seed are given by the arm."""

    def __post_init__(self) -> None:
        for name in self.arms:
            if not name.replace("-", "").replace("_", "").isalnum():
                raise ConfigError(f"arms: {name!r} names a folder; use letters, digits, - and _")
            changed(self, name)


def run(config: Config) -> None:
    """Run what is missing, and write `study.json`: for every arm what each method came to on each group of tasks.

    Raises:
        ConfigError: there are no arms.
    """
    with RunLog(config.workdir, "study", config) as log:

        def arm(name: str, seed: int) -> dict[str, float]:
            metrics = run_arm(config, name, seed)
            log.logger.info("arm", arm=name, seed=seed, **metrics)
            return metrics

        found = run_ablations(AblationConfig(tuple(config.arms), config.seeds), arm)
        changes = {name: list(overrides) for name, overrides in config.arms.items()}
        write_result(log, "study", config, found.to_dict() | {"changes": changes, "steps": config.fit.training.steps})


def changed(config: Config, name: str) -> fit.Config:
    """The fit with an arm's changes.

    Raises:
        ConfigError: a change of what there is not.
    """
    tree: Tree = reduce(merged, map(parse_override, config.arms[name]), {})
    return cast(fit.Config, build(fit.Config, tree, f"arms.{name}", config.fit))


def run_arm(config: Config, name: str, seed: int) -> dict[str, float]:
    """What one arm came to with one seed, now or in an earlier run with the same settings.

    Returns:
        `GROUP: METHOD`, the accuracy, and `GROUP, log-likelihood: METHOD`, the mean log-likelihood of the right answers
        in nats a token, which moves where exact match is still zero.
    """
    folder = config.workdir / f"{name}-s{seed}"
    arm = changed(config, name)
    arm = replace(arm, workdir=folder, training=replace(arm.training, seed=seed))
    evaluation = replace(
        config.evaluate,
        workdir=config.workdir / "evaluate",
        output=folder / "quality.json",
        checkpoint=folder / "generator",
        seed=seed,
    )

    def metrics() -> dict[str, Any]:
        fit.run(arm, texts=config.workdir / fit.TEXTS_FILE)
        evaluate.run(evaluation)
        values: dict[str, float] = {}
        for group, column in read_result(evaluation.output)["columns"].items():
            for method, row in column["methods"].items():
                if row["accuracy"] is not None:
                    name = group.replace("_", " ")
                    values[f"{name}: {method}"] = row["accuracy"]
                    values[f"{name}, log-likelihood: {method}"] = row["log_likelihood"]
        return {"metrics": values}

    digest = f"{config_digest(arm)} {config_digest(evaluation)}"
    found = kept(config.workdir / "arms" / f"{name}-s{seed}.json", digest, metrics)
    return cast(dict[str, float], found["metrics"])
