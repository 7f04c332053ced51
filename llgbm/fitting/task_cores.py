"""Cores of single training tasks, in addition to those generated from their prompts: an auto-decoder.

The trunk serves all tasks at once and learns each of them slowly, so the bases would learn from poor adapters. With
cores of its own, added to the generated ones, a task gets close to the best adapter in the span of the bases within a
few visits, and the bases learn from that. After the fit the sum is the trunk's target.
The cores are free parameters of each data item, as in DeepSDF (1901.05103) and GLO (1707.05776).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from llgbm.errors import ConfigError
from llgbm.generator import LoRAGenerator

_BETAS = (0.9, 0.99)
_EPSILON = 1e-12


class TaskCores(nn.Module):
    """Additions of single tasks to the generated cores, initially zero.

    Args:
        task_ids: tasks with cores of their own; other tasks keep the generated ones.
        generator: gives the shapes.
        first_step: first step of a fit in which they are added.

    Attributes:
        q: (tasks, modules, r, R) float32.
        p: (tasks, modules, R, r) float32, added after the gate.

    Raises:
        ConfigError: there is no task, or one occurs twice.
    """

    def __init__(self, task_ids: Sequence[str], generator: LoRAGenerator, *, first_step: int = 0) -> None:
        super().__init__()
        self._places = {task: place for place, task in enumerate(task_ids)}
        if not task_ids or len(self._places) != len(task_ids):
            raise ConfigError("at least one task with its own cores is needed, and each once")
        self._first_step = first_step
        self.q = nn.Parameter(torch.zeros(len(task_ids), *generator.q0.shape))
        self.p = nn.Parameter(torch.zeros(len(task_ids), *generator.p0.shape))

    def added(self, q: Tensor, p: Tensor, task_ids: Sequence[str], step: int) -> tuple[Tensor, Tensor]:
        """Generated cores Q (n, modules, r, R) and P (n, modules, R, r) plus the additions of these n tasks."""
        slots = [slot for slot, task in enumerate(task_ids) if task in self._places]
        if step < self._first_step or not slots:
            return q, p
        at, places = torch.tensor(slots), torch.tensor([self._places[task_ids[slot]] for slot in slots])
        return q.index_add(0, at, self.q[places]), p.index_add(0, at, self.p[places])


class TaskCoresAdam(torch.optim.Optimizer):
    """Adam for stacks of cores (tasks, modules, a, b), for steps with few of the tasks.

    A task without a gradient keeps its cores and its moments. There is one second moment per core, as Adam-mini has
    one per block (2406.16793). So elements with a negligible gradient hardly move, and the trunk's later target has no
    noise there.
    """

    def __init__(self, params: Iterable[nn.Parameter] | Iterable[dict[str, Any]], lr: float = 1e-3) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update the tasks that have a gradient."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["steps"] = torch.zeros(len(p), 1, 1, 1)
                    state["first"], state["second"] = torch.zeros_like(p), torch.zeros_like(p[..., :1, :1])
                seen = p.grad.flatten(1).any(1).nonzero()[:, 0]  # tasks of this step, s of them
                gradient = p.grad[seen]  # (s, modules, a, b)
                steps = state["steps"][seen] + 1  # (s, 1, 1, 1): bias correction counts a task's own steps
                first = state["first"][seen].lerp(gradient, 1 - _BETAS[0])
                second = state["second"][seen].lerp(gradient.square().mean((-1, -2), keepdim=True), 1 - _BETAS[1])
                # second: (s, modules, 1, 1)
                root = (second / (1 - _BETAS[1] ** steps)).sqrt() + _EPSILON
                p[seen] -= group["lr"] * first / (1 - _BETAS[0] ** steps) / root
                state["steps"][seen], state["first"][seen], state["second"][seen] = steps, first, second
