"""`python -m training ablate`: compares losses over seeds, and the cost of guided fits with N = 1, 5, 10, 20.

Every arm is a fit of `match`, on the same teachers, split and probes. Finished arms are kept in
`{workdir}/ablate/arms`, so a stopped ablation resumes. Results: `ablation.json` with mean and standard deviation over
seeds, and `guided.json` with base forwards and wall time at equal held-out delta cosine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, cast, get_args

from llgbm.ablations import AblationConfig, run_ablations
from llgbm.errors import ConfigError
from training.phases.match import Config as MatchConfig
from training.phases.match import Kind, fingerprint_of, fit_arm
from training.phases.match_setup import MatchSetup, Material, load_material
from training.runs.log import RunLog
from training.runs.results import cached_result, write_result


@dataclass(frozen=True)
class Config(MatchSetup):
    """Settings of an ablation."""

    kinds: tuple[str, ...] = ("weight", "delta", "multitask", "guided")
    """Losses to compare."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of each loss."""
    every: int = 10
    """N of the guided fits that are compared with the other losses."""
    guided_every: tuple[int, ...] = (1, 5, 10, 20)
    """Values of N to compare with the delta loss; empty skips this comparison."""
    tolerance: float = 0.02
    """A fit counts as equal if its cosine is at most this far below the final one of the delta loss."""

    def __post_init__(self) -> None:
        unknown = [kind for kind in self.kinds if kind not in get_args(Kind)]
        if unknown:
            raise ConfigError(f"kinds: {unknown[0]!r} is none of {', '.join(get_args(Kind))}")


def run(config: Config) -> None:
    """Run every missing arm, and write both results."""
    with RunLog(config.workdir, "ablate", config) as log:
        material = load_material(config, log)
        made_of = {"base_revision": material.base.revision, "data_digest": material.split_digest}

        def arm(kind: str, seed: int) -> Mapping[str, float]:
            found = run_arm(material, arm_config(config, kind, config.every, seed), log)
            metrics: Mapping[str, float] = found["metrics"]
            return metrics

        if config.kinds:
            ablation = run_ablations(AblationConfig(config.kinds, config.seeds), arm)
            sizes = {"steps": config.training.steps, "groups": config.groups, "every": config.every}
            write_result(log, "ablation", config, ablation.to_dict() | sizes, **made_of)
        if config.guided_every:
            seed = config.seeds[0]
            delta_only = run_arm(material, arm_config(config, "delta", config.every, seed), log)
            guided = [run_arm(material, arm_config(config, "guided", n, seed), log) for n in config.guided_every]
            found = compare_guided(delta_only, guided, config.tolerance)
            write_result(log, "guided", config, found, **made_of)


def arm_config(config: Config, kind: str, every: int, seed: int) -> MatchConfig:
    """The configuration of an arm's fit."""
    shared = {field.name: getattr(config, field.name) for field in fields(MatchSetup)}
    shared["training"] = replace(config.training, seed=seed)
    return MatchConfig(**shared, loss=cast(Kind, kind), every=every)


def run_arm(material: Material, arm: MatchConfig, log: RunLog) -> dict[str, Any]:
    """The result of a fit, from this run or from an earlier one with the same settings and teachers."""
    folder, made_with = arm.workdir / "ablate", fingerprint_of(arm, material.split_digest)
    state = folder / f"{arm.title}.{made_with.digest}.state.pt"

    def fitted() -> Mapping[str, Any]:
        _, found = fit_arm(material, arm, log, state)
        log.logger.info("arm", arm=arm.title, **found["metrics"])
        return found

    found = cached_result(folder / "arms" / f"{arm.title}.json", made_with, fitted)
    state.unlink(missing_ok=True)  # a finished arm is never resumed
    return found


def compare_guided(
    delta_only: Mapping[str, Any], guided: Sequence[Mapping[str, Any]], tolerance: float
) -> dict[str, Any]:
    """Compare the cost of guided fits with the delta loss: in total, and until they reach its final held-out cosine.

    Args:
        delta_only: result with the same teachers, split, probes, steps and seed as `guided`.
        tolerance: cosines down to this far below the final one count as equal.
    """
    target = _cosine(delta_only["metrics"]) - tolerance
    rows = [_cost("delta-only", delta_only, target)]
    rows += [_cost(f"guided, N = {found['every']}", found, target) for found in guided]
    first = rows[0]
    for row in rows:
        row["fewer_forwards"] = first["base_forwards"] / max(1.0, row["base_forwards"])
        row["fewer_passes"] = first["base_passes"] / max(1.0, row["base_passes"])
        row["cosine_minus_delta_only"] = row["cosine"] - first["cosine"]
    return {"target_cosine": target, "tolerance": tolerance, "rows": rows}


def _cost(name: str, found: Mapping[str, Any], target: float) -> dict[str, Any]:
    metrics = found["metrics"]
    reached = next((point for point in found["curve"] if _cosine(point) >= target), None)
    return {
        "name": name,
        "every": found["every"],
        "cosine": _cosine(metrics),
        "train_cosine": metrics["train_cosine"],
        "base_forwards": metrics["base_forwards"],
        "calibration_passes": metrics["calibration_passes"],
        "base_passes": metrics["base_forwards"] + metrics["calibration_passes"],
        "seconds": metrics["seconds"] + metrics["calibration_seconds"],
        "cpu_seconds": metrics["cpu_seconds"],
        "reached_at": None
        if reached is None
        else {
            "steps": reached["step"],
            "base_forwards": reached["base_forwards"],
            "seconds": round(reached["seconds"] + metrics["calibration_seconds"], 2),
        },
        "curve": [
            {"step": p["step"], "cosine": _cosine(p), "base_forwards": p["base_forwards"]} for p in found["curve"]
        ],
    }


def _cosine(values: Mapping[str, Any]) -> float:
    """The held-out cosine, or that of the training adapters if none are held out."""
    return float(values.get("heldout_cosine", values.get("train_cosine", 0.0)))
