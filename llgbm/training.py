"""train(): the one loop that fits a generator, for every loss. Read it from top to bottom.

A step takes the batch of its step number, gets a loss from the objective, and updates the generator with AdamW, its
trunk optionally with Muon. Nothing else is random, so an interrupted run continues to the same result.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from llgbm.errors import CheckpointError, ConfigError
from llgbm.fitting.data_parallel import Alone, ProcessGroup, backward_in_pieces, share_of
from llgbm.fitting.muon import Muon
from llgbm.generator import LoRAGenerator
from llgbm.matching.losses import DeltaOnlyLoss, MultiTaskLoss
from llgbm.packed.batch import TrainingBatch

__all__ = ["DeltaOnlyLoss", "MultiTaskLoss", "Objective", "TrainingConfig", "TrainingState", "train"]


FREE = ("steps", "seconds", "checkpoint_seconds", "accumulation", "trunk_dtype")
"""Settings that may change on resumption: a run may be made longer, saved more often, or computed in other pieces or in
another precision."""


@dataclass(frozen=True)
class TrainingConfig:
    """Optimisation settings of `train`."""

    steps: int = 1000
    """Maximum number of optimiser steps."""
    seconds: float = 0.0
    """Budget of the steps' wall time in seconds, over all resumptions; 0 for none. The run ends when the first of the
    two budgets is spent, and the learning rate follows that one. A run with a time budget does not repeat exactly."""
    learning_rate: float = 1e-3
    """Peak learning rate of AdamW."""
    shared_rate: float = 1.0
    """Learning rate factor of the generator's shared part: bases and constant cores. A and B are products of two
    trained matrices there, so a step moves them several times as far as `learning_rate` says."""
    trunk_optimiser: Literal["adamw", "muon"] = "adamw"
    """Optimiser of the matrices of the trunk and its heads, see `llgbm.fitting.muon`."""
    trunk_rate: float = 1.0
    """Learning rate factor of these matrices."""
    trunk_dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the matrix products of the trunk and of Muon; parameters and states stay float32. bfloat16 is faster on
    a CPU with instructions for it, and several times slower on others."""
    warmup_steps: int = 20
    """Steps of linear warm-up."""
    decay_fraction: float = 0.3
    """Final fraction of the run over which the learning rate falls linearly to zero."""
    weight_decay: float = 0.0
    """Decoupled weight decay on matrices, embeddings included; none on vectors."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this global norm."""
    accumulation: int = 1
    """Gradient accumulation: number of pieces of a process's share of a step. More pieces need less memory."""
    seed: int = 0
    """Seed of initialisation and of every batch."""
    checkpoint_seconds: float = 180.0
    """Wall time in seconds between two states written to disk."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.warmup_steps < 0 or not 0 <= self.decay_fraction <= 1:
            raise ConfigError("need steps >= 1, warmup_steps >= 0 and decay_fraction between 0 and 1")
        if not (0 < self.learning_rate < math.inf and self.max_grad_norm > 0 and self.weight_decay >= 0):
            raise ConfigError("learning_rate and max_grad_norm must be positive, weight_decay not negative")
        if not 0 <= self.shared_rate < math.inf:
            raise ConfigError("shared_rate must be finite and must not be negative; 0 freezes the shared part")
        if self.trunk_optimiser not in ("adamw", "muon") or not 0 <= self.trunk_rate < math.inf:
            raise ConfigError("trunk_optimiser is adamw or muon, and trunk_rate finite and not negative")
        if self.trunk_dtype not in ("float32", "bfloat16"):
            raise ConfigError(f"trunk_dtype is float32 or bfloat16, not {self.trunk_dtype!r}")
        if self.accumulation < 1:
            raise ConfigError("accumulation must be at least 1")
        if not 0 <= self.seconds < math.inf:
            raise ConfigError("seconds must be finite and must not be negative; 0 sets no budget of time")

    def learning_rate_at(self, step: int, spent: float = 0.0) -> float:
        """Learning rate of `step`, counted from 0, after `spent` seconds of steps: warm-up, plateau, linear decay.

        With the plateau a run can be made longer without a new schedule.
        """
        warm = min(1.0, (step + 1) / max(1, self.warmup_steps))
        left = min(1 - step / self.steps, 1 - spent / self.seconds if self.seconds else 1.0)
        return self.learning_rate * min(warm, max(0.0, left) / self.decay_fraction if self.decay_fraction else 1.0)

    def is_over(self, done: int, spent: float) -> bool:
        """Whether `done` steps and `spent` seconds use up a budget."""
        return done >= self.steps or (self.seconds > 0 and spent >= self.seconds)


class Objective(Protocol):
    """A loss of the generator on a batch."""

    def __call__(self, generator: LoRAGenerator, batch: TrainingBatch, step: int) -> tuple[Tensor, dict[str, float]]:
        """A scalar loss with gradients to the generator, and its named parts for the log."""
        ...

    def modules(self) -> Iterable[nn.Module]:
        """Modules trained in addition to the generator, such as a delta head."""
        ...

    def weight(self, batch: TrainingBatch) -> float:
        """Weight of a batch: the loss of two merged batches is the mean of their losses with these weights."""
        ...


@dataclass(frozen=True)
class TrainingState:
    """State of a run after a step, for the log."""

    step: int
    loss: float
    parts: dict[str, float]
    learning_rate: float
    grad_norm: float
    seconds: float
    """Wall time of this step."""


def train(
    generator: LoRAGenerator,
    objective: Objective,
    batches: Callable[[int], TrainingBatch],
    config: TrainingConfig,
    *,
    state_path: Path | None = None,
    on_step: Callable[[TrainingState], None] | None = None,
    group: ProcessGroup | None = None,
) -> int:
    """Fit `generator` in place.

    Args:
        batches: step number -> batch; must depend on the step number only.
        state_path: file for the run's state; if it exists, the run continues from it.
        on_step: called after every step.
        group: processes that train together and call this with the same arguments. Each computes its share of a
            batch, and the first one writes the state. None trains in this process alone.

    Returns:
        The first step of this call: 0, or the one after the resumed state.

    Raises:
        CheckpointError: `state_path` is not a state of a run, is beyond `config.steps`, or belongs to a run with
            other settings or of another model.
        ConfigError: the loss or its gradient became NaN or infinite, or a batch has fewer groups than there are
            processes.
    """
    if config.seconds and group is not None:
        raise ConfigError("processes that train together need a number of steps; seconds is for one process")
    trained = nn.ModuleList([generator, *objective.modules()]).train()
    generator.trunk_dtype = getattr(torch, config.trunk_dtype)
    optimisers = _optimisers(trained, generator, config)
    first, spent = _restore(state_path, trained, optimisers, config)
    own_state = state_path if group is None or group.rank == 0 else None
    saved = time.monotonic()
    step = first
    while not config.is_over(step, spent):
        started = time.monotonic()
        rate = config.learning_rate_at(step, spent)
        for settings in (group for optimiser in optimisers for group in optimiser.param_groups):
            settings["lr"] = settings["rate"] * rate
        # groups, not rows, are shared out: a group's adapter is made in one place
        share = share_of(batches(step), group or Alone())
        pieces = [share[i :: config.accumulation] for i in range(min(config.accumulation, len(share)))]
        for optimiser in optimisers:
            optimiser.zero_grad(set_to_none=True)
        loss, parts = backward_in_pieces(
            lambda piece, step=step: objective(generator, piece, step),  # type: ignore[misc]
            objective.weight,
            pieces,
            trained.parameters(),
            group or Alone(),
        )
        # the gradients are now those of the whole batch on every process, so all clip and step alike
        norm = float(nn.utils.clip_grad_norm_(trained.parameters(), config.max_grad_norm))
        if not (torch.isfinite(loss) and math.isfinite(norm)):
            raise ConfigError(
                f"loss {float(loss.detach())} and gradient norm {norm} at step {step}; "
                "lower learning_rate or check the data"
            )
        for optimiser in optimisers:
            optimiser.step()
        now = time.monotonic()
        spent += now - started
        if own_state and (config.is_over(step + 1, spent) or now - saved > config.checkpoint_seconds):
            _save(own_state, step + 1, spent, trained, optimisers, config)
            saved = time.monotonic()
        if on_step:
            on_step(TrainingState(step, float(loss.detach()), parts, rate, norm, now - started))
        step += 1
    generator.trunk_dtype = torch.float32
    generator.eval()
    return first


def _optimisers(trained: nn.Module, generator: LoRAGenerator, config: TrainingConfig) -> list[torch.optim.Optimizer]:
    """The optimisers; `rate` of a parameter group is its factor on the scheduled learning rate."""
    shared, trunk = generator.shared_parameters(), generator.trunk_matrices()
    known = {id(p) for p in [*shared, *trunk]}
    others = [p for p in trained.parameters() if p.dim() > 1 and id(p) not in known]
    vectors = [p for p in trained.parameters() if p.dim() <= 1]  # norms and biases: no weight decay
    groups: list[dict[str, Any]] = [
        {"params": shared, "weight_decay": config.weight_decay, "rate": config.shared_rate},
        {"params": others, "weight_decay": config.weight_decay, "rate": 1.0},
        {"params": vectors, "weight_decay": 0.0, "rate": 1.0},
    ]
    of_trunk = {"params": trunk, "weight_decay": config.weight_decay, "rate": config.trunk_rate}
    if config.trunk_optimiser == "adamw":
        groups.append(of_trunk)
    # lr is set in every step, to the schedule times the group's rate
    optimisers: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.98), fused=True)]
    if config.trunk_optimiser == "muon":
        optimisers.append(Muon([of_trunk], dtype=getattr(torch, config.trunk_dtype)))
    return optimisers


def _settings(config: TrainingConfig) -> dict[str, object]:
    """Settings that must not change on resumption, on any machine."""
    return {k: v for k, v in asdict(config).items() if k not in FREE}


def _save(
    path: Path,
    step: int,
    spent: float,
    trained: nn.Module,
    optimisers: Sequence[torch.optim.Optimizer],
    config: TrainingConfig,
) -> None:
    parts = {"model": trained.state_dict(), "optimisers": [o.state_dict() for o in optimisers]}
    state = {"step": step, "seconds": spent, **parts, "settings": _settings(config)}
    temporary = path.with_name(path.name + ".tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    with temporary.open("wb") as file:  # written aside and renamed: a kill leaves the old state or the new one
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _restore(
    path: Path | None, trained: nn.Module, optimisers: Sequence[torch.optim.Optimizer], config: TrainingConfig
) -> tuple[int, float]:
    """Load the state, if there is one; returns the steps and seconds of the run so far."""
    if path is None or not path.exists():
        return 0, 0.0
    try:
        # load_state_dict moves the tensors to the device of the model
        state = torch.load(path, weights_only=True, map_location="cpu")
        settings, step, spent = dict(state["settings"]), int(state["step"]), float(state["seconds"])
        model, moments = state["model"], state["optimisers"]
    except Exception as error:  # torch does not document the exceptions for foreign files
        raise CheckpointError(f"{path} is not the state of a training run; use another workdir: {error!r}") from error
    here = _settings(config)
    if settings != here:
        changed = ", ".join(sorted(k for k in settings.keys() | here.keys() if settings.get(k) != here.get(k)))
        raise CheckpointError(
            f"{path} is the state of a run with other settings ({changed}); use them again or another workdir"
        )
    if step > config.steps:
        raise CheckpointError(
            f"{path} is the state after {step} steps, beyond the {config.steps} asked for; "
            "ask for more or use another workdir"
        )
    try:
        trained.load_state_dict(model)
        for optimiser, its_moments in zip(optimisers, moments, strict=True):
            optimiser.load_state_dict(its_moments)
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path} is the state of another model: {error}") from error
    return step, spent
