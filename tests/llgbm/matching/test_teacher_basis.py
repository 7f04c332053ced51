import pytest
import torch
from torch.testing import assert_close

from llgbm.config import GeneratorConfig, LoRASpec, lora_spec, model_spec
from llgbm.errors import AdapterMismatchError
from llgbm.generator import LoRAGenerator, create_generator
from llgbm.lora import LoRAWeights
from llgbm.matching.teacher_basis import start_from_teachers
from tests.fixtures import random_lora

SPEC = lora_spec("tiny")


def fresh(basis_rank: int) -> LoRAGenerator:
    return create_generator(
        model_spec("tiny"), SPEC, GeneratorConfig(basis_rank=basis_rank, hidden_size=16, num_blocks=1)
    )


def mean(teachers: list[LoRAWeights]) -> LoRAWeights:
    count = len(teachers)
    return LoRAWeights(
        SPEC,
        {n: sum((t.a[n] for t in teachers), torch.zeros(())) / count for n in SPEC.names},
        {n: sum((t.b[n] for t in teachers), torch.zeros(())) / count for n in SPEC.names},
    )


@pytest.mark.parametrize("basis_rank", [12, 20])
def test_a_basis_that_is_large_enough_starts_at_the_mean_and_spans_the_teachers(basis_rank: int) -> None:
    teachers = [random_lora(SPEC, seed) for seed in range(3)]  # 3 * rank 4 = 12 directions
    generator = fresh(basis_rank)
    start_from_teachers(generator, teachers)
    shared, wanted = generator.shared_adapter(), mean(teachers)
    for name in SPEC.names:
        assert_close(shared.a[name], wanted.a[name], rtol=1e-4, atol=1e-4)
        assert_close(shared.b[name], wanted.b[name], rtol=1e-4, atol=1e-4)
    basis = generator.a0["64"][0]  # of the first module
    for teacher in teachers:
        rows = teacher.a[SPEC.names[0]]
        projected = rows @ torch.linalg.pinv(basis) @ basis
        assert_close(projected, rows, rtol=1e-3, atol=1e-3)


def test_a_small_basis_keeps_what_the_teachers_have_most_of() -> None:
    teachers = [random_lora(SPEC, seed) for seed in range(4)]
    strong = random_lora(SPEC, 9).map(lambda t: 5 * t)
    generator = fresh(4)
    start_from_teachers(generator, [*teachers, strong])
    name = SPEC.names[0]
    basis = generator.a0["64"][0].detach()

    def kept(rows: torch.Tensor) -> float:
        return float((rows @ torch.linalg.pinv(basis) @ basis).norm() / rows.norm())

    assert kept(strong.a[name]) > 0.95 > kept(teachers[0].a[name])


def test_cores_have_the_size_of_a_fresh_generators_whatever_the_teachers_have() -> None:
    for size in (1e-3, 1.0, 1e3):
        one = random_lora(SPEC, 0).map(lambda t, size=size: t * size)  # type: ignore[misc]
        generator = fresh(8)
        start_from_teachers(generator, [one])
        assert_close(generator.q0.norm(dim=-1).square().mean(), torch.tensor(1.0), rtol=1e-3, atol=0)
        assert_close(generator.p0.norm(dim=1).square().mean(), torch.tensor(1.0), rtol=1e-3, atol=0)


def test_the_same_seed_gives_the_same_start_and_the_reading_part_is_left_alone() -> None:
    first, second, untouched = fresh(20), fresh(20), fresh(20)
    for generator in (first, second):
        start_from_teachers(generator, [random_lora(SPEC, 0)], seed=3)
    for name, parameter in first.named_parameters():
        assert torch.equal(parameter, second.get_parameter(name))
        changed = name.split(".")[0] in ("a0", "b0", "q0", "p0")
        assert torch.equal(parameter, untouched.get_parameter(name)) != changed


def test_teachers_of_another_spec_and_no_teachers_are_refused() -> None:
    other = LoRASpec.for_model(model_spec("tiny"), rank=2)
    with pytest.raises(AdapterMismatchError, match=r"a teacher of rank 2, .* cannot start a generator of rank 4"):
        start_from_teachers(fresh(8), [random_lora(other, 0)])
    with pytest.raises(AdapterMismatchError, match="no teacher"):
        start_from_teachers(fresh(8), [])
