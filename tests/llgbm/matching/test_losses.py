"""Scale counts, shapes must fit, and each term's gradient reaches only the side that it trains."""

from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llgbm.config import LoRASpec, model_spec
from llgbm.errors import AdapterMismatchError, ConfigError
from llgbm.lora import LoRAWeights, combine, zeros
from llgbm.matching.delta_head import DeltaHead, DeltaHeadConfig
from llgbm.matching.losses import DeltaGuidedLoss, DeltaOnlyLoss, MultiTaskLoss, WeightLoss
from llgbm.matching.weight_tokens import TokenLayout, TokenNormalizer, tokenize
from tests.fixtures import random_lora

TINY = model_spec("tiny")
SPEC = LoRASpec.for_model(TINY, rank=4, alpha=8.0)


def leaf(adapter: LoRAWeights) -> LoRAWeights:
    return adapter.map(lambda t: t.clone().requires_grad_())


def has_gradient(adapters: Sequence[LoRAWeights]) -> bool:
    grads = [t.grad for w in adapters for t in w.tensors]
    return any(g is not None and bool(g.abs().sum() > 0) for g in grads)


def deltas(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def head(seed: int = 0) -> DeltaHead:
    """A head with nonzero parameters: a fresh one predicts zero."""
    made = DeltaHead(TINY, SPEC, [0, 1], DeltaHeadConfig(sketch_size=4, output_rank=8, correction_size=8))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return made


# ---- weights


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 50), st.integers(1, 6), st.floats(0.1, 4.0))
def test_product_mode_is_the_dense_relative_error(seed: int, rank: int, scale: float) -> None:
    student = random_lora(LoRASpec.for_model(TINY, rank=rank, alpha=3.0), seed).scaled(scale)
    teacher = random_lora(SPEC, seed + 100)
    loss, parts = WeightLoss("product")([student], [teacher])
    names = SPEC.names
    error = sum(float((student.delta_weight(n) - teacher.delta_weight(n)).double().square().sum()) for n in names)
    energy = sum(float(teacher.delta_weight(n).double().square().sum()) for n in names)
    assert float(loss) == pytest.approx(error / energy, rel=1e-4)
    assert parts == {"weight": pytest.approx(float(loss))}


def test_product_mode_does_not_see_the_gauge_and_knows_zero_and_nothing() -> None:
    teacher = random_lora(SPEC, 1)
    turn = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(0)))[0]
    turned = LoRAWeights(
        SPEC, {n: turn @ t for n, t in teacher.a.items()}, {n: t @ turn.T for n, t in teacher.b.items()}
    )
    loss = WeightLoss("product")
    assert float(loss([turned], [teacher])[0]) < 1e-10
    assert float(loss([combine([teacher, zeros(SPEC)], [1.0, 1.0])], [teacher])[0]) < 1e-10
    assert float(loss([zeros(SPEC)], [teacher])[0]) == pytest.approx(1.0)
    assert float(loss([teacher.scaled(3.0)], [teacher])[0]) == pytest.approx(4.0, rel=1e-5)


def test_token_mode_is_the_mean_square_of_normalised_tokens() -> None:
    student, teacher = random_lora(SPEC, 1), random_lora(SPEC, 2)
    normalizer = TokenNormalizer.fit([teacher])
    losses = [float(WeightLoss("tokens", normalizer, size)([student], [teacher])[0]) for size in (7, 64)]
    layout = TokenLayout(SPEC, 48)
    gap = tokenize([student], layout, normalizer) - tokenize([teacher], layout, normalizer)
    expected = float(gap[0][layout.mask].square().mean())
    assert losses == pytest.approx([expected, expected], rel=1e-5)
    assert float(WeightLoss("tokens", normalizer)([teacher], [teacher])[0]) == 0.0


@pytest.mark.parametrize("mode", ["product", "tokens"])
def test_weight_loss_trains_the_student_only(mode: str) -> None:
    student, teacher = leaf(random_lora(SPEC, 1)), leaf(random_lora(SPEC, 2))
    loss, _ = WeightLoss(mode, TokenNormalizer.fit([random_lora(SPEC, 2)]))([student], [teacher])  # type: ignore[arg-type]
    loss.backward()
    assert has_gradient([student])
    assert not has_gradient([teacher])


def narrow() -> LoRAWeights:
    return random_lora(LoRASpec.for_model(TINY, rank=4, alpha=8.0, targets=["q_proj"]), 1)


@pytest.mark.parametrize("mode", ["product", "tokens"])
def test_weight_loss_raises_where_things_do_not_fit(mode: str) -> None:
    """The research code skipped tensors of other shapes, so its weight loss was exactly 0."""
    loss = WeightLoss(mode, TokenNormalizer.fit([random_lora(SPEC, 2)]))  # type: ignore[arg-type]
    full = random_lora(SPEC, 1)
    with pytest.raises(AdapterMismatchError, match="different modules"):
        loss([narrow()], [full])
    with pytest.raises(AdapterMismatchError, match="need one for each"):
        loss([full], [full, full])
    with pytest.raises(AdapterMismatchError, match="need one for each"):
        loss([], [])


def test_weight_loss_refuses_other_ranks_as_tokens_and_zero_teachers_as_products() -> None:
    other = random_lora(LoRASpec.for_model(TINY, rank=3), 1)
    with pytest.raises(AdapterMismatchError, match="rank"):
        WeightLoss("tokens", TokenNormalizer.fit([random_lora(SPEC, 2)]))([other], [random_lora(SPEC, 1)])
    with pytest.raises(AdapterMismatchError, match="zero"):
        WeightLoss("product")([random_lora(SPEC, 1)], [zeros(SPEC)])


# ---- deltas


@pytest.mark.parametrize("shape", [(2, 3, 16), (2, 5, 3, 16)])
def test_delta_loss_is_zero_only_at_the_teacher(shape: tuple[int, ...]) -> None:
    teacher = deltas(0, *shape)
    loss, parts = DeltaOnlyLoss()(teacher, teacher)
    assert float(loss) == pytest.approx(0.0, abs=1e-6)
    assert parts["delta_cosine"] == pytest.approx(1.0)
    nothing, parts = DeltaOnlyLoss()(torch.zeros(shape), teacher)
    assert float(nothing) == pytest.approx(2.0)
    assert parts["delta_error"] == pytest.approx(1.0)


@settings(max_examples=30, deadline=None)
@given(st.floats(0.0, 5.0), st.integers(0, 20))
def test_scale_of_a_delta_matters(scale: float, seed: int) -> None:
    """Delta losses on normalised vectors leave the scale free; here a wrong scale has a loss."""
    teacher = deltas(seed, 2, 4, 3, 16)
    loss, parts = DeltaOnlyLoss()(scale * teacher, teacher)
    assert parts["delta_error"] == pytest.approx((scale - 1) ** 2, rel=1e-3, abs=1e-6)
    assert float(loss) >= (scale - 1) ** 2 - 1e-5


def test_layers_of_small_norm_count_like_the_others() -> None:
    teacher = deltas(1, 2, 4, 2, 16) * torch.tensor([1e-3, 1e3])[:, None]
    wrong_small, wrong_large = teacher.clone(), teacher.clone()
    wrong_small[:, :, 0] *= -1
    wrong_large[:, :, 1] *= -1
    small, large = (float(DeltaOnlyLoss()(w, teacher)[0]) for w in (wrong_small, wrong_large))
    assert small == pytest.approx(large, rel=1e-3)


def test_gradient_is_bounded_where_a_fresh_generator_starts() -> None:
    teacher = deltas(1, 2, 4, 2, 16)
    for start in (0.0, 1e-12, 1e-3):
        student = (start * deltas(2, 2, 4, 2, 16)).requires_grad_()
        DeltaOnlyLoss()(student, teacher)[0].backward()
        assert student.grad is not None
        assert float(student.grad.norm()) < 20
        # downhill is towards the teacher
        assert float((student.grad * teacher).sum()) < 0


def test_delta_loss_raises_where_shapes_do_not_fit() -> None:
    loss = DeltaOnlyLoss()
    bad: list[tuple[Tensor, Tensor]] = [
        (torch.ones(2, 3, 16), torch.ones(2, 1, 16)),
        (torch.ones(1, 3, 16), torch.ones(2, 3, 16)),
        (torch.ones(2, 3, 16), torch.ones(2, 5, 3, 16)),
        (torch.ones(3, 16), torch.ones(3, 16)),
    ]
    for delta, teacher in bad:
        with pytest.raises(AdapterMismatchError):
            loss(delta, teacher)
    with pytest.raises(AdapterMismatchError, match="zero"):
        loss(torch.ones(2, 3, 16), torch.zeros(2, 3, 16))


def test_a_yardstick_allows_a_zero_teacher() -> None:
    delta = deltas(0, 2, 3, 16).requires_grad_()
    loss, _ = DeltaOnlyLoss()(delta, torch.zeros(2, 3, 16), yardstick=deltas(1, 2, 3, 16))
    loss.backward()
    assert bool(torch.isfinite(loss))
    assert delta.grad is not None
    assert float((delta.grad * delta.detach()).sum()) > 0
    same = DeltaOnlyLoss()(delta, deltas(2, 2, 3, 16), yardstick=deltas(1, 2, 3, 16))[0]
    assert torch.equal(same, DeltaOnlyLoss()(delta, deltas(2, 2, 3, 16))[0])


# ---- both


def test_multi_task_is_the_weighted_sum() -> None:
    student, teacher = leaf(random_lora(SPEC, 1)), random_lora(SPEC, 2)
    delta, teacher_delta = deltas(1, 1, 4, 2, 64).requires_grad_(), deltas(2, 1, 4, 2, 64)
    loss, parts = MultiTaskLoss(0.5, 2.0)([student], [teacher], delta, teacher_delta)
    assert float(loss.detach()) == pytest.approx(0.5 * parts["weight"] + 2.0 * parts["delta"], rel=1e-5)
    assert parts["loss"] == pytest.approx(float(loss.detach()))
    loss.backward()
    assert has_gradient([student])
    assert delta.grad is not None
    with pytest.raises(AdapterMismatchError):
        MultiTaskLoss()([student], [teacher], delta[:, :2], teacher_delta)


def test_guided_steps_are_due_every_n() -> None:
    assert [step for step in range(12) if DeltaGuidedLoss(every=5).due(step)] == [0, 5, 10]
    assert all(DeltaGuidedLoss(every=1).due(step) for step in range(5))


def only(**weights: float) -> DeltaGuidedLoss:
    return DeltaGuidedLoss(**{"lambda_predicted": 0.0, "lambda_computed": 0.0, "lambda_consistency": 0.0} | weights)  # type: ignore[arg-type]


def guided(loss: DeltaGuidedLoss) -> tuple[DeltaHead, LoRAWeights, Tensor]:
    """One backward pass; returns the head, the adapter and the computed delta, with their gradients."""
    reader, generated = head(), leaf(random_lora(SPEC, 1))
    computed = deltas(5, 1, 4, 2, 64).requires_grad_()
    total, _ = loss(reader, [generated], deltas(6, 1, 4, 2, 64), computed)
    total.backward()
    return reader, generated, computed


def moved(reader: DeltaHead) -> dict[str, bool]:
    return {n: p.grad is not None and bool(p.grad.abs().sum() > 0) for n, p in reader.named_parameters()}


@pytest.mark.parametrize(
    ("term", "trained"),
    [
        ("lambda_consistency", "head"),  # the research code detached the side that this term should train
        ("lambda_predicted", "generator"),
        ("lambda_computed", "computed delta"),  # and so the generator through the base; here the delta is a leaf
    ],
)
def test_each_term_of_the_guided_loss_trains_one_part_only(term: str, trained: str) -> None:
    reader, generated, computed = guided(only(**{term: 1.0}))
    assert set(moved(reader).values()) == {trained == "head"}
    assert has_gradient([generated]) == (trained == "generator")
    assert (computed.grad is not None and bool(computed.grad.abs().sum() > 0)) == (trained == "computed delta")


def test_teachers_with_weights_train_the_head() -> None:
    reader, teacher = head(), leaf(random_lora(SPEC, 3))
    loss = only(lambda_consistency=1.0)
    total, parts = loss(reader, [random_lora(SPEC, 1)], deltas(6, 1, 4, 2, 64), None, [teacher])
    total.backward()
    assert all(moved(reader).values())
    assert not has_gradient([teacher])
    assert {"head_delta_cosine", "predicted_delta_error", "loss"} <= parts.keys()


def test_guided_loss_survives_the_first_step_of_a_fresh_generator() -> None:
    """Its B is zero, and so is the computed delta."""
    fresh = leaf(zeros(SPEC))
    total, _ = DeltaGuidedLoss()(head(), [fresh], deltas(6, 1, 4, 2, 64), torch.zeros(1, 4, 2, 64))
    total.backward()
    assert bool(torch.isfinite(total))
    assert all(bool(torch.isfinite(t.grad).all()) for t in fresh.tensors if t.grad is not None)


def test_guided_loss_raises_where_shapes_do_not_fit() -> None:
    adapter, loss = random_lora(SPEC, 1), DeltaGuidedLoss()
    with pytest.raises(AdapterMismatchError):
        loss(head(), [adapter], deltas(1, 2, 4, 2, 64))
    with pytest.raises(AdapterMismatchError):
        loss(head(), [adapter], deltas(1, 1, 4, 1, 64))
    with pytest.raises(AdapterMismatchError):
        loss(head(), [adapter], deltas(1, 1, 4, 2, 64), deltas(1, 1, 3, 2, 64))


@pytest.mark.parametrize(
    "make",
    [
        lambda: WeightLoss("cosine"),  # type: ignore[arg-type]
        lambda: WeightLoss("tokens"),
        lambda: DeltaOnlyLoss(lambda_scale=0.0),
        lambda: DeltaOnlyLoss(lambda_direction=-1.0),
        lambda: MultiTaskLoss(0.0, 0.0),
        lambda: MultiTaskLoss(-1.0, 2.0),
        lambda: DeltaGuidedLoss(every=0),
        lambda: DeltaGuidedLoss(lambda_computed=-1.0),
    ],
)
def test_settings_out_of_range_are_refused(make: Callable[[], object]) -> None:
    with pytest.raises(ConfigError):
        make()
