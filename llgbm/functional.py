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
from itertools import groupby
from typing import Literal
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llgbm.config import LoRASpec
from llgbm.errors import AdapterMismatchError, AdapterNotAppliedError
from llgbm.linears.shared_input import SharedInput, input_groups
from llgbm.lora import LoRAWeights, Stack
from llgbm.packed.lora import InputGradient, Pieces, add_products_with_b, pieces_of, products_with_a

_MODELS_IN_USE: WeakSet[nn.Module] = WeakSet()
"""Models inside a context. Kept per model, not per FunctionalLoRA: two of these on one model would add up."""


Hook = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(input, output, weight) of a Linear -> output, with the products added in place.

With a weight, the hook also computes the gradient of the input through the Linear; None leaves that to the Linear.
"""


@dataclass(frozen=True, eq=False)
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
            groups = [_Group(names, whole, None) for names in input_groups(weights.spec.names)]
            return {name: _Hook(group, reader) for group in groups for reader, name in enumerate(group.names)}
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
        hooks: dict[str, _Hook] = {}
        for siblings in input_groups(names):
            # modules with the same input and the same spans share the products with A
            by_spans: dict[tuple[_Span, ...], list[str]] = {}
            for name in siblings:
                by_spans.setdefault(tuple(s for s in spans if name in s.adapter.a), []).append(name)
            for shared, readers in by_spans.items():
                group = _Group(readers, shared, start, lengths)
                hooks |= {name: _Hook(group, reader, rows) for reader, name in enumerate(readers)}
        return hooks


class _Group:
    """Modules with the same input x and the same spans.

    `total` is the expected number of rows, or of tokens if `lengths` are given; None for one adapter on any batch.
    """

    def __init__(
        self, names: Sequence[str], spans: Sequence[_Span], total: int | None, lengths: Sequence[int] | None = None
    ) -> None:
        self.names, self.spans, self.total, self.packed = names, spans, total, lengths is not None
        self.longest = max(lengths, default=0) if lengths is not None else 0
        self.adapters = [span.adapter for span in spans]
        self._hidden = SharedInput(self._products_with_a, len(names))

    def bounds(self, name: str, x: Tensor) -> tuple[tuple[int, int], ...]:
        """First and last token of each span in the flat input."""
        rows, tokens = x.shape[0], x.shape[0] * x.shape[1]
        if self.total is None:
            return ((0, tokens),)
        actual, unit = (tokens, "tokens") if self.packed else (rows, "rows")
        if actual != self.total or (self.packed and rows != 1):
            raise AdapterMismatchError(
                f"adapters were given for {self.total} {unit}, but {name} sees an input of shape {tuple(x.shape)}"
            )
        width = 1 if self.packed else x.shape[1]
        # spans count rows, or tokens of a packed row; bounds always count tokens of the flat input
        return tuple((s.start * width, s.stop * width) for s in self.spans)

    def pieces(self, name: str, x: Tensor) -> Pieces:
        """The spans, in pieces."""
        specs = [adapter.spec for adapter in self.adapters]
        scalings, rank = tuple(spec.scaling for spec in specs), max(spec.rank for spec in specs)
        return pieces_of(x.shape[0] * x.shape[1], self.bounds(name, x), scalings, rank, x.dtype, x.device)

    def hidden(self, reader: int, x: Tensor) -> tuple[Tensor, InputGradient]:
        """The product of `x` with A of the module with number `reader`, with gradients."""
        hidden, frozen = self._hidden.read(reader, x)
        return hidden[reader], frozen

    def _products_with_a(self, x: Tensor) -> tuple[tuple[Tensor, ...], InputGradient]:
        a, frozen = [_stacked("a", name, self.adapters, x) for name in self.names], InputGradient()
        return products_with_a(x.flatten(0, 1), self.pieces(self.names[0], x), a, frozen), frozen


class _Hook:
    """Adds the products of all spans to the output (rows, tokens, out) of the module with number `reader` of a group.

    `padded` are the adapters of all spans, for a batch with one row for each.
    """

    def __init__(self, group: _Group, reader: int, padded: Sequence[LoRAWeights | None] = ()) -> None:
        self._group, self._reader, self._name = group, reader, group.names[reader]
        self._padded = padded

    def __call__(self, x: Tensor, output: Tensor, weight: Tensor | None = None) -> Tensor:
        group, name = self._group, self._name
        if len(self._padded) > 1 and x.shape[:2] == (len(self._padded), group.longest):
            return self._on_padded_rows(x, output)
        if torch.is_grad_enabled():
            pieces = group.pieces(name, x)
            b, (hidden, frozen) = _stacked("b", name, group.adapters, x), group.hidden(self._reader, x)
            if weight is None or not x.requires_grad:
                return add_products_with_b(output, hidden, pieces, b, None)
            return add_products_with_b(output.detach(), hidden, pieces, b, (frozen, weight))
        flat = x.reshape(-1, x.shape[-1])  # (tokens, in)
        flat_output = output.view(len(flat), -1)  # (tokens, out), the output's own memory
        for (start, stop), adapter in zip(group.bounds(name, x), group.adapters, strict=True):
            a, b = (t[name].to(x.device, x.dtype) for t in (adapter.a, adapter.b))
            # (n, in) @ (in, r) @ (r, out): rank-sized products first, never the dense B A
            flat_output[start:stop].addmm_(flat[start:stop] @ a.t(), b.t(), alpha=adapter.spec.scaling)
        return output

    def _on_padded_rows(self, x: Tensor, output: Tensor) -> Tensor:
        """One row (L, in) for each of G adapters: two batched products, whatever G is."""
        there = [None if w is None or self._name not in w.a else w for w in self._padded]
        a, b = _stacked("a", self._name, there, x), _stacked("b", self._name, there, x)
        scalings = x.new_tensor([0.0 if w is None else w.spec.scaling for w in there])[:, None, None]
        # (G, L, in) @ (G, in, r) @ (G, r, out)
        return torch.baddbmm(output, torch.bmm(x, a.mT) * scalings, b)


def _stacked(side: Literal["a", "b"], name: str, adapters: Sequence[LoRAWeights | None], like: Tensor) -> Tensor:
    """A (G, r, in) of one module, or its B^T (G, r, out), in dtype and device of `like`.

    None gives zeros. Zeros up to the highest rank r change no product.
    """
    if (stack := _common_stack(adapters)) is not None:
        return (stack.a if side == "a" else stack.b)[name].to(like.device, like.dtype)
    factors = [None if w is None else w.a[name] if side == "a" else w.b[name].mT for w in adapters]
    rank = max(len(factor) for factor in factors if factor is not None)
    some = next(factor for factor in factors if factor is not None)
    whole = [some.new_zeros(rank, some.shape[1]) if f is None else _with_rows(f, rank) for f in factors]
    return torch.stack(whole).to(like.device, like.dtype)


def _with_rows(factor: Tensor, rank: int) -> Tensor:
    """`factor` (r, n) with rows of zeros up to (rank, n)."""
    return factor if len(factor) == rank else F.pad(factor, (0, 0, 0, rank - len(factor)))


def _common_stack(adapters: Sequence[LoRAWeights | None]) -> Stack | None:
    """The stack whose adapters these are, all of them in order; None if there is none."""
    stack = None if adapters[0] is None else adapters[0].stack
    if stack is None or len(adapters) != len(next(iter(stack.a.values()))):
        return None
    own = all(w is not None and w.stack is stack and w.place == place for place, w in enumerate(adapters))
    return stack if own else None


def _recording(name: str, hook: Hook, fired: set[str]) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    def run(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        fired.add(name)
        weight = module.weight if type(module) is nn.Linear and not module.weight.requires_grad else None
        return hook(args[0], output, weight)

    return run
