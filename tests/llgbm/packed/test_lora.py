from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from llgbm.packed.lora import InputGradient, add_products_with_b, pieces_of, products_with_a

RANK, IN, OUT = 3, 5, (4, 2)
BOUNDS = [((0, 2), (2, 3)), ((1, 3), (3, 4), (6, 9)), tuple((i, i + 1) for i in range(9))]
"""Spans of 9 tokens: some tokens have none, and more spans than one product holds."""


def factors(count: int) -> tuple[Tensor, list[Tensor], list[Tensor], list[Tensor]]:
    """x (9, IN), outputs (1, 9, out), A (count, r, IN) and B^T (count, r, out) of two modules."""
    draw = torch.Generator().manual_seed(count)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=draw, requires_grad=True)

    a = [random(count, RANK, IN) for _ in OUT]
    return random(9, IN), [random(1, 9, n) for n in OUT], a, [random(count, RANK, n) for n in OUT]


def outputs(
    bounds: tuple[tuple[int, int], ...],
    x: Tensor,
    base: Sequence[Tensor],
    a: Sequence[Tensor],
    b: Sequence[Tensor],
    *,
    scaling: bool = True,
) -> tuple[Tensor, ...]:
    scalings = tuple(1.0 + i * scaling for i in range(len(bounds)))
    pieces = pieces_of(9, bounds, scalings, RANK, x.dtype, x.device)
    hidden = products_with_a(x, pieces, a, InputGradient())
    modules = zip(base, hidden, b, strict=True)
    return tuple(add_products_with_b(output.clone(), h, pieces, of_b, None) for output, h, of_b in modules)


@pytest.mark.parametrize("bounds", BOUNDS)
def test_every_span_gets_the_products_of_its_own_adapter(bounds: tuple[tuple[int, int], ...]) -> None:
    x, base, a, b = factors(len(bounds))
    for module, found in enumerate(outputs(bounds, x, base, a, b)):
        expected = base[module].detach().clone()
        for place, (start, stop) in enumerate(bounds):
            product = x[start:stop] @ a[module][place].T @ b[module][place]
            expected[0, start:stop] += (1.0 + place) * product.detach()
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("bounds", BOUNDS)
def test_gradients_are_those_that_numbers_give(bounds: tuple[tuple[int, int], ...]) -> None:
    x, base, a, b = factors(len(bounds))

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        return outputs(bounds, tensors[0], tensors[1:3], tensors[3:5], tensors[5:7])

    assert torch.autograd.gradcheck(run, (x, *base, *a, *b))
    frozen = [t.detach() for t in a]
    assert torch.autograd.gradcheck(lambda x, *b: outputs(bounds, x, base, frozen, b), (x, *b))


def test_gradients_through_frozen_linears_are_those_of_autograd() -> None:
    """Whichever of them are asked for, and again on a graph that was kept."""
    bounds = BOUNDS[1]
    x, _, a, b = factors(len(bounds))
    weights = [torch.randn(n, IN, dtype=torch.float64, generator=torch.Generator().manual_seed(n)) for n in OUT]
    pieces, gradient = pieces_of(9, bounds, (1.0,) * len(bounds), RANK, x.dtype, x.device), InputGradient()
    hidden = products_with_a(x, pieces, a, gradient)
    total = torch.zeros((), dtype=torch.float64)
    for weight, h, of_b in zip(weights, hidden, b, strict=True):
        output = add_products_with_b((x @ weight.T).detach(), h, pieces, of_b, (gradient, weight))
        total = total + output.square().sum()
    plain = [x @ weight.T for weight in weights]
    expected = torch.stack([o.square().sum() for o in outputs(bounds, x, plain, a, b, scaling=False)]).sum()
    for wanted in ([b[0]], [x], [*a], [x, *a, *b], [x]):
        found = torch.autograd.grad(total, wanted, retain_graph=True)
        torch.testing.assert_close(found, torch.autograd.grad(expected, wanted, retain_graph=True))
