"""Starts a generator at the mean of teachers, with bases that span the teachers.

A fresh generator begins with B0 = 0 and random A0. Teachers give better bases: for each module, A0 becomes the
principal directions of the rows of all A, and B0 those of the columns of all B. The constant cores give the mean of the
teachers, which any fit would learn first.
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
"""Length of the random directions that complete a basis, relative to the others."""


@torch.no_grad()
def start_from_teachers(generator: LoRAGenerator, teachers: Sequence[LoRAWeights], *, seed: int = 0) -> None:
    """Set bases and constant cores in place; the trunk is unchanged.

    Directions are ordered by the teachers' energy along them. A basis rank below the teachers' rank cuts off the last
    ones; a larger basis rank is completed with random directions.

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

    Cores get rows of about length 1, as in a fresh generator; the scale of the teachers goes into the bases.
    """
    seen: Counter[int] = Counter()
    for number, (size, side) in enumerate(zip(sizes, sides, strict=True)):
        basis_of_size = bases[str(size)]
        scale = side.norm(dim=-1).square().mean().sqrt().clamp_min(1e-8)  # root mean square length of a row
        basis = _directions(side.flatten(0, 1), basis_of_size.shape[1], random)
        basis_of_size[seen[size]] = basis * scale
        cores[number] = side.mean(0) @ basis.t() / scale  # (rank, size) @ (size, R)
        seen[size] += 1


def _directions(rows: Tensor, count: int, random: torch.Generator) -> Tensor:
    """`count` orthogonal directions (count, size): the principal ones of `rows` (n, size), of length 1, largest first.

    Random directions that complete them have length `_FILL`.
    """
    rows = rows.double()
    # principal directions from the (n, n) Gram matrix; eigh sorts ascending, and tiny eigenvalues are rounding errors
    values, vectors = torch.linalg.eigh(rows @ rows.t())
    good = values > 1e-8 * values[-1].clamp_min(1e-30)
    principal = vectors[:, good].flip(1)[:, :count].t() @ rows
    filling = torch.randn(count - len(principal), rows.shape[1], generator=random, dtype=torch.float64)
    directions: Tensor = torch.linalg.qr(torch.cat([principal, filling]).t())[0].t().contiguous()
    directions[len(principal) :] *= _FILL
    return directions.float()
