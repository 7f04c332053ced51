"""Optimiser steps on the A and B of one adapter: AdamW, warm-up, linear decay, gradient clipping.

The rows of a step are packed, and the adapter is applied through `FunctionalLoRA`, so the base may store its Linears in
any form that passes gradients.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from llgbm.base import Base, require_gradients
from llgbm.config import LoRASpec
from llgbm.errors import CheckpointError, ConfigError
from llgbm.fitting.task_losses import label_logits, sft_loss
from llgbm.functional import FunctionalLoRA
from llgbm.lora import LoRAWeights
from llgbm.packed.batch import Row, pack

_MOMENTS = ("exp_avg", "exp_avg_sq")
"""The tensors that AdamW keeps for each parameter."""


@dataclass(frozen=True)
class StepSettings:
    """Settings of the steps.

    Attributes:
        learning_rate: peak learning rate.
        schedule_steps: steps until the rate is zero: it rises over the first tenth and falls linearly from there.
        max_grad_norm: gradients are clipped to this global norm.
        start_decay: decoupled weight decay towards the start in place of zero (L2-SP, Li et al. 2018,
            arXiv 1802.01483). A step moves each parameter by `rate * start_decay` of its distance.
        label_smoothing: label smoothing of the loss.
    """

    learning_rate: float
    schedule_steps: int
    max_grad_norm: float = 1.0
    start_decay: float = 0.0
    label_smoothing: float = 0.0

    def rate_at(self, step: int) -> float:
        """Learning rate of `step`, counted from 0."""
        risen = (step + 1) / max(1.0, self.schedule_steps / 10)
        left = (self.schedule_steps - step) / (0.9 * self.schedule_steps)
        return self.learning_rate * min(1.0, risen, left)


class LoRASteps:
    """Trains a copy of `start` step by step.

    Args:
        base: loaded in a storage that passes gradients.
        start: the initial A and B; they stay unchanged.

    Raises:
        ConfigError: the base passes no gradients.
        AdapterMismatchError: the adapter does not fit the base.
    """

    def __init__(self, base: Base, start: LoRAWeights, settings: StepSettings) -> None:
        require_gradients(base)
        self._base, self._settings = base, settings
        self._functional = FunctionalLoRA(base.model)
        self._functional.require_fits(start.spec)
        self._start = start.map(lambda t: t.detach().to(base.device, torch.float32))
        self._weights = self._start.map(torch.clone)
        self._trained = self._weights.tensors
        for tensor in self._trained:
            tensor.requires_grad_()
        self._optimiser = torch.optim.AdamW(self._trained, lr=settings.learning_rate, weight_decay=0.0)
        self.done = 0

    @property
    def weights(self) -> LoRAWeights:
        """A copy of the adapter as trained so far, float32 on the CPU."""
        return self._weights.map(lambda t: t.detach().cpu().clone())

    def step(self, groups: Sequence[Sequence[Row]]) -> float:
        """One step on all rows of `groups`; returns their loss before the step, nats.

        Args:
            groups: rows in groups that share a prefix, see `llgbm.packed.batch`.

        Raises:
            ConfigError: the loss is not finite.
        """
        rate = self._settings.rate_at(self.done)
        for parameters in self._optimiser.param_groups:
            parameters["lr"] = rate
        batch = pack(groups).on(self._base.device)
        logits = label_logits(self._base, self._functional, batch, [self._weights] * len(groups))
        loss = sft_loss(logits, batch, label_smoothing=self._settings.label_smoothing)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise ConfigError(f"the loss of step {self.done} is {value}; lower learning_rate, or check the start")
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._trained, self._settings.max_grad_norm)
        if self._settings.start_decay:
            share = min(1.0, rate * self._settings.start_decay)
            with torch.no_grad():
                torch._foreach_lerp_(self._trained, self._start.tensors, share)
        self._optimiser.step()
        self.done += 1
        return value

    def state(self) -> dict[str, Tensor]:
        """All that `resume` needs, as new tensors: `weights`, `exp_avg`, `exp_avg_sq` flat float32, and `done`."""
        state = {"weights": _flat(self._trained), "done": torch.tensor(self.done)}
        for moment in _MOMENTS if self.done else ():
            state[moment] = _flat([self._optimiser.state[t][moment] for t in self._trained])
        return state

    def resume(self, state: Mapping[str, Tensor]) -> None:
        """Continue from `state`.

        Raises:
            CheckpointError: the state is incomplete, or belongs to an adapter of another size.
        """
        size = sum(t.numel() for t in self._trained)
        try:
            done = int(state["done"])
            vectors = {name: state[name] for name in ("weights", *(_MOMENTS if done else ()))}
        except KeyError as missing:
            raise CheckpointError(f"the state of the steps lacks {missing}; start again without it") from missing
        for name, vector in vectors.items():
            if vector.shape != (size,):
                raise CheckpointError(f"{name} of the state is {tuple(vector.shape)}, the adapter has ({size},)")
        parts = {
            name: vector.to(self._base.device).split([t.numel() for t in self._trained])
            for name, vector in vectors.items()
        }
        with torch.no_grad():
            for place, tensor in enumerate(self._trained):
                tensor.copy_(parts["weights"][place].view_as(tensor))
                if done:
                    moments = {name: parts[name][place].view_as(tensor).clone() for name in _MOMENTS}
                    self._optimiser.state[tensor] = {"step": torch.tensor(float(done)), **moments}
        self.done = done


def initial_lora(spec: LoRASpec, seed: int) -> LoRAWeights:
    """PEFT's initialisation of a LoRA: A from a uniform distribution (Kaiming, a = sqrt 5), B zero; float32."""
    generator = torch.Generator().manual_seed(seed)
    a = {m.name: torch.empty(spec.rank, m.in_features) for m in spec.modules}
    for tensor in a.values():
        nn.init.kaiming_uniform_(tensor, a=math.sqrt(5), generator=generator)
    return LoRAWeights(spec, a, {m.name: torch.zeros(m.out_features, spec.rank) for m in spec.modules})


def weights_from(spec: LoRASpec, vector: Tensor) -> LoRAWeights:
    """The adapter of the `weights` vector of a state."""
    sizes = [size for m in spec.modules for size in (spec.rank * m.in_features, m.out_features * spec.rank)]
    parts = iter(vector.cpu().split(sizes))
    a, b = {}, {}
    for module in spec.modules:
        a[module.name] = next(parts).view(spec.rank, module.in_features).clone()
        b[module.name] = next(parts).view(module.out_features, spec.rank).clone()
    return LoRAWeights(spec, a, b)


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.detach().flatten() for t in tensors]).cpu()
