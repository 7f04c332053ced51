"""Cores that belong to one training task, beside what the generator makes of its prompt: an auto-decoder.

The trunk has to serve all tasks at once and learns each of them slowly; the bases learn from adapters that are not yet
good. With cores of its own that are added to the generated ones, a task gets close to the best adapter that the bases
hold within a few visits, and the bases learn from that. When the fit is over, the sum is what the trunk is to make.
The cores are free parameters for each item of the data, as in DeepSDF (1901.05103) and GLO (1707.05776).
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
    """What tasks add to generated cores, from zero.

    Args:
        task_ids: those that have cores of their own; others keep what the generator makes.
        generator: for the shapes.
        first_step: the step of a fit from which on they count.

    Attributes:
        q: (tasks, modules, r, R) float32.
        p: (tasks, modules, R, r) float32, added after the gate.

    Raises:
        ConfigError: there is no task, or one twice.
    """

    def __init__(self, task_ids: Sequence[str], generator: LoRAGenerator, *, first_step: int = 0) -> None:
        super().__init__()
        self._places = {task: place for place, task in enumerate(task_ids)}
        if not task_ids or len(self._places) != len(task_ids):
            raise ConfigError("tasks with cores of their own must be there, and each once")
        self._first_step = first_step
        self.q = nn.Parameter(torch.zeros(len(task_ids), *generator.q0.shape))
        self.p = nn.Parameter(torch.zeros(len(task_ids), *generator.p0.shape))

    def added(self, q: Tensor, p: Tensor, task_ids: Sequence[str], step: int) -> tuple[Tensor, Tensor]:
        """Generated cores Q (n, modules, r, R) and P (n, modules, R, r) with what these n tasks add in `step`."""
        slots = [slot for slot, task in enumerate(task_ids) if task in self._places]
        if step < self._first_step or not slots:
            return q, p
        at, places = torch.tensor(slots), torch.tensor([self._places[task_ids[slot]] for slot in slots])
        return q.index_add(0, at, self.q[places]), p.index_add(0, at, self.p[places])


class TaskCoresAdam(torch.optim.Optimizer):
    """Adam for stacks of cores (tasks, modules, a, b), of which a step sees few tasks.

    A task without a gradient stays where it is, and its moments as they are. There is one second moment for each core,
    as Adam-mini has one for each block (2406.16793): elements without a gradient to speak of stay where they are, and
    what the trunk has to learn afterwards is not noise.
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
                seen = p.grad.flatten(1).any(1).nonzero()[:, 0]
                gradient = p.grad[seen]
                steps = state["steps"][seen] + 1
                first = state["first"][seen].lerp(gradient, 1 - _BETAS[0])
                second = state["second"][seen].lerp(gradient.square().mean((-1, -2), keepdim=True), 1 - _BETAS[1])
                root = (second / (1 - _BETAS[1] ** steps)).sqrt() + _EPSILON
                p[seen] -= group["lr"] * first / (1 - _BETAS[0] ** steps) / root
                state["steps"][seen], state["first"][seen], state["second"][seen] = steps, first, second
