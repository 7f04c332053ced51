"""FunctionalLoRA: adds LoRA products to a frozen model's Linear outputs through forward hooks.

Training, evaluation and chat all apply adapters this way. Hooks exist only inside a context, so the plain base costs
nothing extra and its numbers do not change. A batch has one adapter for all rows, one per row (None for the plain
base), or one per span of a packed row. Gradients reach every A and B. The frozen Linears may store their weights in
any form, since only their output is changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import groupby
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llgbm.config import LoRASpec
from llgbm.errors import AdapterMismatchError, AdapterNotAppliedError
from llgbm.lora import LoRAWeights

_MODELS_IN_USE: WeakSet[nn.Module] = WeakSet()
"""Models inside a context. Kept per model, not per FunctionalLoRA: two of these on one model would add up."""


Hook = Callable[[Tensor, Tensor], Tensor]
"""(input, output) of a Linear -> output, with the products added in place."""


@dataclass(frozen=True)
class _Span:
    """Consecutive rows, or consecutive tokens of a packed row, that share one adapter."""

    start: int
    stop: int
    adapter: LoRAWeights


@dataclass
class AppliedLoRA:
    """The adapters applied inside one context.

    Attributes:
        modules_hooked: number of modules with a hook.
    """

    modules_hooked: int
    _fired: set[str] = field(default_factory=set)


class PreparedLoRA:
    """Checked adapters, laid out for one batch composition, for repeated use.

    Args:
        hooks: module name -> hook that adds the products of all adapters to the module's output.
    """

    def __init__(self, hooks: Mapping[str, Hook]) -> None:
        self.hooks = hooks


class FunctionalLoRA:
    """Applies LoRAWeights to `model` inside a context.

    Args:
        model: a transformers causal LM, or any module whose Linears have the names in the specs. A Linear is any
            module with `in_features` and `out_features`.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._linears = {
            name: module
            for name, module in model.named_modules()
            if hasattr(module, "in_features") and hasattr(module, "out_features")
        }

    def require_fits(self, spec: LoRASpec) -> None:
        """Check that every module of `spec` is a Linear of the model, has the same sizes and was not replaced.

        Raises:
            AdapterMismatchError: names the first module that does not fit.
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
            if self._model.get_submodule(module.name) is not linear:  # a hook on the old one would never run
                raise AdapterMismatchError(
                    f"{module.name} was replaced in the model after this FunctionalLoRA was made; make another"
                )

    def require_plain(self) -> None:
        """Check that no adapter is applied to the model.

        Raises:
            AdapterMismatchError: one is.
        """
        if self._model in _MODELS_IN_USE:
            raise AdapterMismatchError("an adapter is already applied to this model; leave its context first")

    def prepare(
        self, weights: LoRAWeights | Sequence[LoRAWeights | None], *, lengths: Sequence[int] | None = None
    ) -> PreparedLoRA:
        """Prepare adapters once for many contexts of one batch composition.

        Arguments and errors as in `applied`.
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
            weights: one adapter for the whole batch, one for each row (None for the plain base), or the result of
                `prepare`.
            lengths: for a packed batch, the tokens of each span, one span for each of `weights`. The model may see
                the spans in one row, or each in a row of its own, padded at the end.

        Yields:
            AppliedLoRA: the number of hooked modules.

        Raises:
            AdapterMismatchError: an adapter does not fit the model, the batch has another number of rows or
                tokens, or an adapter is already applied to the model.
            AdapterNotAppliedError: a forward pass inside the context did not reach every adapted module.
        """
        self.require_plain()
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
            return {name: _Hook(name, whole, None) for name in weights.spec.names}
        if lengths is not None and len(lengths) != len(weights):
            raise AdapterMismatchError(f"{len(weights)} adapters for {len(lengths)} spans: need one for each")
        sizes = [1] * len(weights) if lengths is None else list(lengths)
        spans, start = [], 0
        # neighbours with the same adapter become one span, hence one product
        for _, run in groupby(zip(weights, sizes, strict=True), key=lambda pair: id(pair[0])):
            members = list(run)
            stop = start + sum(size for _, size in members)
            if (adapter := members[0][0]) is not None:
                spans.append(_Span(start, stop, adapter))
            start = stop
        for spec in dict.fromkeys(span.adapter.spec for span in spans):
            self.require_fits(spec)
        names = dict.fromkeys(name for span in spans for name in span.adapter.spec.names)
        rows = () if lengths is None else tuple(weights)
        return {name: _Hook(name, [s for s in spans if name in s.adapter.a], start, lengths, rows) for name in names}


class _Hook:
    """Adds the products of all spans to the output (rows, tokens, out) of one module.

    `total` is the expected number of rows, or of tokens if `lengths` are given; None for one adapter on any batch.
    `padded` are the adapters of all spans, for a batch with one row for each.
    """

    def __init__(
        self,
        name: str,
        spans: list[_Span],
        total: int | None,
        lengths: Sequence[int] | None = None,
        padded: Sequence[LoRAWeights | None] = (),
    ) -> None:
        self.name, self.spans, self.total, self.packed = name, spans, total, lengths is not None
        self.padded, self.longest = padded, max(lengths, default=0) if lengths is not None else 0

    def __call__(self, x: Tensor, output: Tensor) -> Tensor:
        rows, tokens = x.shape[0], x.shape[0] * x.shape[1]
        if len(self.padded) > 1 and (rows, x.shape[1]) == (len(self.padded), self.longest):
            return self._on_padded_rows(x, output)
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
            # spans count rows, or tokens of a packed row; bounds always count tokens of the flat input
            bounds = [(s.start * width, s.stop * width) for s in self.spans]
        flat = x.reshape(tokens, x.shape[-1])  # (tokens, in)
        adapters = [s.adapter for s in self.spans]
        if torch.is_grad_enabled():
            a, b = _stacked(self.name, adapters, x)
            result: Tensor = _AddLoRA.apply(output, flat, tuple(bounds), a, b)  # type: ignore[no-untyped-call]
            return result
        flat_output = output.view(tokens, -1)  # (tokens, out), the output's own memory
        for (start, stop), adapter in zip(bounds, adapters, strict=True):
            a, b = (t[self.name].to(x.device, x.dtype) for t in (adapter.a, adapter.b))
            # (n, in) @ (in, r) @ (r, out): rank-sized products first, never the dense B A
            flat_output[start:stop].addmm_(flat[start:stop] @ a.t(), b.t(), alpha=adapter.spec.scaling)
        return output

    def _on_padded_rows(self, x: Tensor, output: Tensor) -> Tensor:
        """One row (L, in) for each of G adapters: two batched products, whatever G is."""
        there = [None if w is None or self.name not in w.a else w for w in self.padded]
        a, b = _stacked(self.name, there, x)
        # (G, L, in) @ (G, in, r) @ (G, r, out)
        return torch.baddbmm(output, torch.bmm(x, a.mT), b)


def _stacked(name: str, adapters: Sequence[LoRAWeights | None], like: Tensor) -> tuple[Tensor, Tensor]:
    """A (G, r, in) and B^T times its scaling (G, r, out) of one module, in dtype and device of `like`.

    None gives zeros. Zeros up to the highest rank r change no product.
    """
    some = next(w for w in adapters if w is not None)
    rank = max(w.spec.rank for w in adapters if w is not None)
    a, b = [], []
    for adapter in adapters:
        if adapter is None:
            a.append(some.a[name].new_zeros(rank, some.a[name].shape[1]))
            b.append(some.b[name].new_zeros(rank, some.b[name].shape[0]))
            continue
        more = (0, 0, 0, rank - adapter.spec.rank)
        a.append(F.pad(adapter.a[name], more) if more[-1] else adapter.a[name])
        b.append(F.pad(adapter.b[name].mT, more) if more[-1] else adapter.b[name].mT)
    scalings = torch.tensor([1.0 if w is None else w.spec.scaling for w in adapters])[:, None, None]
    whole_b = torch.stack(b)
    return (
        torch.stack(a).to(like.device, like.dtype),
        (whole_b * scalings.to(whole_b.device)).to(like.device, like.dtype),
    )


_SPANS_A_PRODUCT = 4
"""Spans of one product. More spans mean fewer calls, and more products that the mask throws away."""


@dataclass(frozen=True, eq=False)
class _Piece:
    """Neighbouring spans that share their products: tokens `start` to `stop`, adapters `first` to `last`.

    Attributes:
        mask: (tokens, adapters * r), 1 where a column belongs to the token's own adapter; None for one span.
    """

    start: int
    stop: int
    first: int
    last: int
    mask: Tensor | None


@lru_cache(maxsize=4)  # all modules of a batch have the same spans
def _pieces(bounds: tuple[tuple[int, int], ...], rank: int, dtype: torch.dtype, device: torch.device) -> list[_Piece]:
    pieces = []
    for first in range(0, len(bounds), _SPANS_A_PRODUCT):
        members = bounds[first : first + _SPANS_A_PRODUCT]
        start, stop = members[0][0], members[-1][1]
        mask = torch.zeros(stop - start, len(members), rank, dtype=dtype, device=device)
        for place, (begin, end) in enumerate(members):
            mask[begin - start : end - start, place] = 1
        whole = len(members) == 1
        pieces.append(_Piece(start, stop, first, first + len(members), None if whole else mask.flatten(1)))
    return pieces


class _AddLoRA(torch.autograd.Function):
    """output[span] += (x[span] @ A.T) @ B.T for every span, in place; B has the scaling.

    Neighbouring spans are multiplied by each other's adapters too, and a mask removes these products: a few larger
    products are faster on a CPU than many small ones. The backward pass keeps x and the rank-sized products only. The
    output may change in place because the gradient of a frozen Linear does not need it.
    """

    @staticmethod
    def forward(
        ctx: Any, output: Tensor, x: Tensor, bounds: tuple[tuple[int, int], ...], a: Tensor, b: Tensor
    ) -> Tensor:
        flat = output.view(x.shape[0], -1)
        pieces, hidden = _pieces(bounds, a.shape[1], x.dtype, x.device), []
        for piece in pieces:
            own = slice(piece.first, piece.last)
            h = x[piece.start : piece.stop] @ a[own].flatten(0, 1).t()  # (n, c r)
            if piece.mask is not None:
                h.mul_(piece.mask)
            flat[piece.start : piece.stop].addmm_(h, b[own].flatten(0, 1))
            hidden.append(h)
        ctx.mark_dirty(output)
        ctx.pieces = pieces
        ctx.save_for_backward(x, a, b, *hidden)
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, a, b, *hidden = ctx.saved_tensors
        flat = grad.reshape(x.shape[0], -1)
        grad_x = torch.zeros_like(x) if ctx.needs_input_grad[1] else None
        grad_a, grad_b = torch.empty_like(a), torch.empty_like(b)
        for piece, h in zip(ctx.pieces, hidden, strict=True):
            own, tokens = slice(piece.first, piece.last), slice(piece.start, piece.stop)
            # y = h B^T and h = x A^T, masked: dh = g B, masked; dA = dh^T x, dB^T = h^T g, dx = dh A
            g = flat[tokens]  # (n, out)
            grad_h = g @ b[own].flatten(0, 1).t()  # (n, c r)
            if piece.mask is not None:
                grad_h.mul_(piece.mask)
            torch.mm(grad_h.t(), x[tokens], out=grad_a[own].view(-1, a.shape[2]))
            torch.mm(h.t(), g, out=grad_b[own].view(-1, b.shape[2]))
            if grad_x is not None:
                torch.mm(grad_h, a[own].flatten(0, 1), out=grad_x[tokens])
        return grad, grad_x, None, grad_a, grad_b


def _recording(name: str, hook: Hook, fired: set[str]) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    def run(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        fired.add(name)
        return hook(args[0], output)

    return run
