"""LoRAWeights: the A and B tensors of one adapter, with their LoRASpec.

A has shape (rank, in_features), B (out_features, rank); every module of the spec has exactly one pair. The tensors may
require grad: a generator returns LoRAWeights too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llgbm.config import LoRASpec
from llgbm.errors import AdapterFormatError, AdapterMismatchError


@dataclass(frozen=True, eq=False)
class Stack:
    """Tensors of n adapters that were made together. Products of all of them need no copy of each.

    Attributes:
        a: module name -> A (n, rank, in_features).
        b: module name -> B, transposed (n, rank, out_features).
    """

    a: Mapping[str, Tensor]
    b: Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class LoRAWeights:
    """One adapter.

    Attributes:
        spec: rank, alpha and modules.
        a: module name -> (rank, in_features), floating point.
        b: module name -> (out_features, rank), the same dtype and device.
        stack: the tensors of which `a` and `b` are views, if the adapter was made together with others.
        place: the index in them.

    Raises:
        AdapterFormatError: a module is missing or extra, or a tensor has the wrong shape or dtype.
    """

    spec: LoRASpec
    a: Mapping[str, Tensor]
    b: Mapping[str, Tensor]
    stack: Stack | None = None
    place: int = 0

    def __post_init__(self) -> None:
        names = set(self.spec.names)
        for side, tensors in (("A", self.a), ("B", self.b)):
            if tensors.keys() != names:
                missing, extra = sorted(names - tensors.keys()), sorted(tensors.keys() - names)
                raise AdapterFormatError(
                    f"lora_{side} must cover the {len(names)} modules of its spec; "
                    f"missing {missing[:3]}, extra {extra[:3]}"
                )
        for module in self.spec.modules:
            a, b = self.a[module.name], self.b[module.name]
            expected_a = (self.spec.rank, module.in_features)
            expected_b = (module.out_features, self.spec.rank)
            if a.shape != expected_a or b.shape != expected_b:
                raise AdapterFormatError(
                    f"{module.name}: lora_A is {tuple(a.shape)} and lora_B {tuple(b.shape)}, "
                    f"expected {expected_a} and {expected_b}"
                )
            if not a.is_floating_point() or a.dtype != b.dtype or a.device != b.device:
                raise AdapterFormatError(
                    f"{module.name}: lora_A is {a.dtype} on {a.device} and lora_B {b.dtype} on {b.device}; "
                    "both must have one floating-point dtype and device"
                )

    def pairs(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        """(name, A, B) in the order of the spec."""
        for name in self.spec.names:
            yield name, self.a[name], self.b[name]

    @property
    def tensors(self) -> list[Tensor]:
        """All A and B, in the order of `pairs`."""
        return [tensor for _, a, b in self.pairs() for tensor in (a, b)]

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of all A and B."""
        return self.a[self.spec.names[0]].dtype

    @property
    def num_bytes(self) -> int:
        """Size of all A and B in bytes."""
        return self.spec.num_parameters * self.dtype.itemsize

    def map(self, fn: Callable[[Tensor], Tensor]) -> LoRAWeights:
        """A new adapter with `fn` applied to every A and B; `fn` must keep the shapes."""
        return LoRAWeights(self.spec, {n: fn(t) for n, t in self.a.items()}, {n: fn(t) for n, t in self.b.items()})

    def to(self, dtype: torch.dtype) -> LoRAWeights:
        """The adapter in `dtype`; itself if it has that dtype."""
        return self if dtype == self.dtype else self.map(lambda t: t.to(dtype))

    def detach(self) -> LoRAWeights:
        """The adapter without gradients."""
        return self.map(lambda t: t.detach())

    def scaled(self, factor: float) -> LoRAWeights:
        """The adapter with `factor` times the product BA. Only B is scaled, so the product is linear in `factor`."""
        return LoRAWeights(self.spec, self.a, {n: t * factor for n, t in self.b.items()})

    def require_finite(self) -> None:
        """Raise AdapterFormatError that names the first tensor with a NaN or an infinity."""
        for name, a, b in self.pairs():
            for side, tensor in (("A", a), ("B", b)):
                if not bool(torch.isfinite(tensor).all()):
                    raise AdapterFormatError(f"lora_{side} of {name} has NaN or infinite values")

    def delta_weight(self, name: str) -> Tensor:
        """The dense update `scaling * B @ A` of one module, (out_features, in_features)."""
        return self.spec.scaling * (self.b[name] @ self.a[name])

    def product_norms(self) -> dict[str, float]:
        """Frobenius norm of `scaling * B @ A` of each module, from r x r Gram matrices without the dense product."""
        norms = {}
        for name, a, b in self.pairs():
            # ||BA||^2 = tr(A A^T B^T B), the sum of an elementwise product of symmetric (r, r) matrices;
            # rounding may make it slightly negative
            gram = ((a @ a.T).double() * (b.T @ b).double()).sum().clamp_min(0)
            norms[name] = self.spec.scaling * float(gram.sqrt())
        return norms


def combine(adapters: Sequence[LoRAWeights], weights: Sequence[float]) -> LoRAWeights:
    """The adapter whose product BA is the exact weighted sum of the products of `adapters`.

    Ranks add up: [A1; A2] and [w1 s1 B1, w2 s2 B2] / s, the `cat` combination of PEFT's `add_weighted_adapter`.

    Raises:
        AdapterMismatchError: the lists differ in length, are empty, or the adapters change different modules.
    """
    if not adapters or len(adapters) != len(weights):
        raise AdapterMismatchError(f"{len(adapters)} adapters and {len(weights)} weights: need one weight for each")
    first = adapters[0].spec
    if any(w.spec.modules != first.modules for w in adapters):
        raise AdapterMismatchError("only adapters of the same modules can be combined")
    rank = sum(w.spec.rank for w in adapters)
    spec = LoRASpec(rank, float(rank), first.modules)  # alpha = rank, so s = 1
    factors = [weight * adapter.spec.scaling for adapter, weight in zip(adapters, weights, strict=True)]
    return LoRAWeights(
        spec,
        {n: torch.cat([w.a[n] for w in adapters], dim=0) for n in spec.names},
        {n: torch.cat([f * w.b[n] for f, w in zip(factors, adapters, strict=True)], dim=1) for n in spec.names},
    )


def zeros(spec: LoRASpec, dtype: torch.dtype = torch.float32) -> LoRAWeights:
    """The zero adapter, which changes nothing."""
    return LoRAWeights(
        spec,
        {m.name: torch.zeros(spec.rank, m.in_features, dtype=dtype) for m in spec.modules},
        {m.name: torch.zeros(m.out_features, spec.rank, dtype=dtype) for m in spec.modules},
    )
