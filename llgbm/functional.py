"""FunctionalLoRA: adds LoRA products to a frozen model's Linear outputs through forward hooks.

The one path by which this project applies an adapter, in training, evaluation and chat alike. The adapter is
state of one call: hooks exist only inside the context, so the plain base costs nothing and its numbers do not
change. A batch carries one adapter for all rows, one for each row (None is the plain base), or one for each
span of a packed row. Gradients reach every A and B. The frozen Linears may store their weights in any form,
since only their output is added to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from llgbm.config import LoRASpec
from llgbm.errors import AdapterMismatchError, AdapterNotAppliedError
from llgbm.lora import LoRAWeights

_MODELS_IN_USE: WeakSet[nn.Module] = WeakSet()
"""Models inside a context. Of the models, not of FunctionalLoRA objects: two of these on one model would add
up."""


Hook = Callable[[Tensor, Tensor], Tensor]
"""Input and output of a Linear -> its output with the products added, in place."""


@dataclass(frozen=True)
class _Span:
    """Consecutive rows, or consecutive tokens of a packed row, that share one adapter."""

    start: int
    stop: int
    adapter: LoRAWeights


@dataclass
class AppliedLoRA:
    """What is applied inside one context.

    Attributes:
        modules_hooked: number of distinct modules that add a product.
    """

    modules_hooked: int
    _fired: set[str] = field(default_factory=set)


class PreparedLoRA:
    """Adapters that are checked and laid out for one batch composition, to be applied again and again.

    Args:
        hooks: module name -> what adds the products of all adapters to the module's output.
    """

    def __init__(self, hooks: Mapping[str, Hook]) -> None:
        self.hooks = hooks


class FunctionalLoRA:
    """Applies LoRAWeights to `model` inside a context.

    Args:
        model: a transformers causal LM, or any module whose Linears carry the names of the specs used with
            it. A Linear is whatever has `in_features` and `out_features`.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._linears = {
            name: module
            for name, module in model.named_modules()
            if hasattr(module, "in_features") and hasattr(module, "out_features")
        }

    def require_fits(self, spec: LoRASpec) -> None:
        """Check that every module of `spec` is a Linear of the model with the same sizes, and still in its place.

        Raises:
            AdapterMismatchError: names the first module that is missing, has other sizes or was replaced.
        """
        for module in spec.modules:
            linear = self._linears.get(module.name)
            if linear is None:
                raise AdapterMismatchError(
                    f"the adapter changes {module.name}, which this model does not have; was it made for another base?"
                )
            sizes = (linear.in_features, linear.out_features)
            if sizes != (module.in_features, module.out_features):
                raise AdapterMismatchError(
                    f"{module.name} is {module.in_features} -> {module.out_features} in the adapter "
                    f"but {sizes[0]} -> {sizes[1]} in the model; was it made for another base?"
                )
            if self._model.get_submodule(module.name) is not linear:  # a hook on the old one would do nothing
                raise AdapterMismatchError(
                    f"{module.name} was replaced in the model after this FunctionalLoRA was made; make another"
                )

    def prepare(
        self, weights: LoRAWeights | Sequence[LoRAWeights | None], *, lengths: Sequence[int] | None = None
    ) -> PreparedLoRA:
        """Do the work of `applied` that can be shared by many contexts of one batch composition.

        Arguments and errors are those of `applied`. Decoding, token by token, has a faster form: `StackedLoRA`.
        """
        return PreparedLoRA(self._hooks(weights, lengths))

    @contextmanager
    def applied(
        self,
        weights: LoRAWeights | Sequence[LoRAWeights | None] | PreparedLoRA,
        *,
        lengths: Sequence[int] | None = None,
    ) -> Iterator[AppliedLoRA]:
        """Add the adapters to every forward pass of the model inside the context.

        Args:
            weights: one adapter for the whole batch, or one for each row, None for a row of the plain base;
                or what `prepare` or `StackedLoRA.arrange` made of them.
            lengths: for a packed batch of one row: the number of tokens of each span, one span for each of
                `weights`.

        Yields:
            AppliedLoRA: how many modules are hooked.

        Raises:
            AdapterMismatchError: an adapter does not fit the model, the batch has another number of rows or
                tokens, or an adapter is already applied to the model.
            AdapterNotAppliedError: a forward pass inside the context did not reach every adapted module.
        """
        if self._model in _MODELS_IN_USE:
            raise AdapterMismatchError("an adapter is already applied to this model; leave its context first")
        hooks = weights.hooks if isinstance(weights, PreparedLoRA) else self._hooks(weights, lengths)
        applied = AppliedLoRA(modules_hooked=len(hooks))
        handles = [
            self._linears[name].register_forward_hook(_recording(name, hook, applied._fired))
            for name, hook in hooks.items()
        ]
        _MODELS_IN_USE.add(self._model)
        try:
            yield applied
            if applied._fired and len(applied._fired) != len(hooks):
                silent = sorted(hooks.keys() - applied._fired)
                raise AdapterNotAppliedError(
                    f"{len(applied._fired)} of {len(hooks)} adapted modules ran; {silent[0]} did not, "
                    "so the adapter was not fully applied"
                )
        finally:
            _MODELS_IN_USE.discard(self._model)
            for handle in handles:
                handle.remove()

    def _hooks(
        self, weights: LoRAWeights | Sequence[LoRAWeights | None], lengths: Sequence[int] | None
    ) -> dict[str, _Hook]:
        if isinstance(weights, LoRAWeights):
            if lengths is not None:
                raise AdapterMismatchError("lengths go with a sequence of adapters, one for each span")
            self.require_fits(weights.spec)
            whole = [_Span(0, 0, weights)]
            return {name: _Hook(name, whole, None, packed=False) for name in weights.spec.names}
        if lengths is not None and len(lengths) != len(weights):
            raise AdapterMismatchError(f"{len(weights)} adapters for {len(lengths)} spans: need one for each")
        sizes = [1] * len(weights) if lengths is None else list(lengths)
        spans, start = [], 0
        for _, run in groupby(zip(weights, sizes, strict=True), key=lambda pair: id(pair[0])):
            members = list(run)
            stop = start + sum(size for _, size in members)
            if (adapter := members[0][0]) is not None:
                spans.append(_Span(start, stop, adapter))
            start = stop
        for spec in dict.fromkeys(span.adapter.spec for span in spans):
            self.require_fits(spec)
        names = dict.fromkeys(name for span in spans for name in span.adapter.spec.names)
        return {
            name: _Hook(name, [s for s in spans if name in s.adapter.a], start, packed=lengths is not None)
            for name in names
        }


class _Hook:
    """Adds the products of all spans to the output of one module."""

    def __init__(self, name: str, spans: list[_Span], total: int | None, *, packed: bool) -> None:
        self.name, self.spans, self.total, self.packed = name, spans, total, packed

    def __call__(self, x: Tensor, output: Tensor) -> Tensor:
        rows, tokens = x.shape[0], x.shape[0] * x.shape[1]
        if self.total is None:
            bounds = [(0, tokens)]
        else:
            actual, unit = (tokens, "tokens") if self.packed else (rows, "rows")
            if actual != self.total or (self.packed and rows != 1):
                raise AdapterMismatchError(
                    f"adapters were given for {self.total} {unit}, "
                    f"but {self.name} sees an input of shape {tuple(x.shape)}"
                )
            width = 1 if self.packed else x.shape[1]
            bounds = [(s.start * width, s.stop * width) for s in self.spans]
        flat = x.reshape(tokens, x.shape[-1])
        a = [s.adapter.a[self.name].to(x.dtype) for s in self.spans]
        b = [s.adapter.b[self.name].to(x.dtype) for s in self.spans]
        scalings = [s.adapter.spec.scaling for s in self.spans]
        if torch.is_grad_enabled():
            result: Tensor = _AddLoRA.apply(output, flat, bounds, scalings, *a, *b)  # type: ignore[no-untyped-call]
            return result
        flat_output = output.view(tokens, -1)
        for (start, stop), scaling, a_i, b_i in zip(bounds, scalings, a, b, strict=True):
            flat_output[start:stop].addmm_(flat[start:stop] @ a_i.t(), b_i.t(), alpha=scaling)
        return output


class _AddLoRA(torch.autograd.Function):
    """output[span] += scaling * (x[span] @ A.T) @ B.T for every span, in place.

    Saves only x and the rank-sized products for the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any, output: Tensor, x: Tensor, bounds: list[tuple[int, int]], scalings: list[float], *ab: Tensor
    ) -> Tensor:
        a, b = ab[: len(bounds)], ab[len(bounds) :]
        flat = output.view(x.shape[0], -1)
        hidden = []
        for (start, stop), scaling, a_i, b_i in zip(bounds, scalings, a, b, strict=True):
            h = x[start:stop] @ a_i.t()
            flat[start:stop].addmm_(h, b_i.t(), alpha=scaling)
            hidden.append(h)
        ctx.mark_dirty(output)
        ctx.bounds, ctx.scalings = bounds, scalings
        ctx.save_for_backward(x, *ab, *hidden)
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, *rest = ctx.saved_tensors
        n = len(ctx.bounds)
        a, b, hidden = rest[:n], rest[n : 2 * n], rest[2 * n :]
        flat = grad.reshape(x.shape[0], -1)
        grad_x = torch.zeros_like(x) if ctx.needs_input_grad[1] else None
        grad_a, grad_b = [], []
        for (start, stop), scaling, a_i, b_i, h in zip(ctx.bounds, ctx.scalings, a, b, hidden, strict=True):
            g = flat[start:stop]
            grad_h = (g @ b_i).mul_(scaling)
            grad_a.append(grad_h.t() @ x[start:stop])
            grad_b.append((h.t() @ g).mul_(scaling).t())
            if grad_x is not None:
                torch.mm(grad_h, a_i, out=grad_x[start:stop])
        return grad, grad_x, None, None, *grad_a, *grad_b


def _recording(name: str, hook: Hook, fired: set[str]) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    def run(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        fired.add(name)
        return hook(args[0], output)

    return run
