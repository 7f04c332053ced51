"""Starts a generator at the mean of teachers, with bases that span what the teachers differ in.

A fresh generator begins with B0 = 0 and random A0, and finds both on the way. Where teachers are there, their principal
directions are known: for each module, A0 becomes those of the rows of all A, and B0 those of the columns of all B. The
constant cores give the mean of the teachers, which is the first thing that any fit would learn.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from llgbm.errors import AdapterMismatchError
from llgbm.generator import LoRAGenerator
from llgbm.lora import LoRAWeights

_FILL = 0.1
"""Size of the random directions that fill a basis up, relative to the others."""


@torch.no_grad()
def start_from_teachers(generator: LoRAGenerator, teachers: Sequence[LoRAWeights], *, seed: int = 0) -> None:
    """Set bases and constant cores in place; what reads the condition stays as it is.

    Directions are ordered by how much of the teachers lies along them. Where the basis rank is smaller than what the
    teachers span, the rest is cut off; where it is larger, random directions fill up.

    Args:
        teachers: of the generator's own LoRASpec, trained from one start, so that their mean makes sense.
        seed: of the random directions.

    Raises:
        AdapterMismatchError: there is no teacher, or one has another spec.
    """
    if not teachers:
        raise AdapterMismatchError("there is no teacher to start from")
    for teacher in teachers:
        if teacher.spec != generator.lora:
            raise AdapterMismatchError(
                f"a teacher of rank {teacher.spec.rank}, alpha {teacher.spec.alpha} "
                f"with {len(teacher.spec.modules)} modules "
                f"cannot start a generator of rank {generator.lora.rank}, alpha {generator.lora.alpha} with "
                f"{len(generator.lora.modules)} modules; train teachers and generator with the same "
                "rank, alpha and targets"
            )
    random = torch.Generator().manual_seed(seed)
    modules, names = generator.lora.modules, generator.lora.names
    rows = [torch.stack([t.a[name].float() for t in teachers]) for name in names]
    _start_side(generator.a0, [m.in_features for m in modules], rows, generator.q0, random)
    columns = [torch.stack([t.b[name].float().t() for t in teachers]) for name in names]
    _start_side(generator.b0, [m.out_features for m in modules], columns, generator.p0.transpose(1, 2), random)


def _start_side(
    bases: nn.ParameterDict, sizes: Sequence[int], sides: Sequence[Tensor], cores: Tensor, random: torch.Generator
) -> None:
    """Set the bases of one side, and its cores (modules, rank, basis rank), for sides (teachers, rank, size).

    Cores get rows of about length one, as in a fresh generator; the size of the teachers goes into the bases.
    """
    seen: Counter[int] = Counter()
    for number, (size, side) in enumerate(zip(sizes, sides, strict=True)):
        basis_of_size = bases[str(size)]
        scale = side.norm(dim=-1).square().mean().sqrt().clamp_min(1e-8)
        basis = _directions(side.flatten(0, 1), basis_of_size.shape[1], random)
        basis_of_size[seen[size]] = basis * scale
        cores[number] = side.mean(0) @ basis.t() / scale
        seen[size] += 1


def _directions(rows: Tensor, count: int, random: torch.Generator) -> Tensor:
    """`count` orthogonal directions (count, size), those that hold most of `rows` (n, size) first, of length one.

    What fills up has length `_FILL`.
    """
    rows = rows.double()
    values, vectors = torch.linalg.eigh(rows @ rows.t())
    good = values > 1e-8 * values[-1].clamp_min(1e-30)
    principal = vectors[:, good].flip(1)[:, :count].t() @ rows
    filling = torch.randn(count - len(principal), rows.shape[1], generator=random, dtype=torch.float64)
    directions: Tensor = torch.linalg.qr(torch.cat([principal, filling]).t())[0].t().contiguous()
    directions[len(principal) :] *= _FILL
    return directions.float()
