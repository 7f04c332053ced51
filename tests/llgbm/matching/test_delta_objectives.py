from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from llgbm.base import Base
from llgbm.config import GeneratorConfig, lora_spec
from llgbm.delta import DeltaMeter
from llgbm.errors import ConfigError
from llgbm.generator import LoRAGenerator, create_generator
from llgbm.matching.delta_head import DeltaHead, DeltaHeadConfig
from llgbm.matching.delta_objectives import DeltaGuidedObjective, DeltaObjective, WeightObjective
from llgbm.matching.losses import DeltaGuidedLoss, DeltaOnlyLoss, MultiTaskLoss, WeightLoss
from llgbm.packed.batch import TaskGroup
from llgbm.probes import ProbeSet
from llgbm.training import Objective, TrainingConfig, train
from tests.fixtures import random_lora

SPEC = lora_spec("tiny")
PROBES = ProbeSet(("a cat", "17 + 4", "yes"), chat=False)
GROUPS = 4


@pytest.fixture(scope="module")
def meter(tiny_base: Base) -> DeltaMeter:
    return DeltaMeter(tiny_base, PROBES, [0, 1])


@pytest.fixture(scope="module")
def batch(meter: DeltaMeter) -> list[TaskGroup]:
    teachers = [random_lora(SPEC, seed, size=0.3) for seed in range(GROUPS)]
    with torch.no_grad():
        deltas = meter.deltas(teachers)
    conditions = torch.nn.functional.normalize(
        torch.randn(GROUPS, 384, generator=torch.Generator().manual_seed(0)), dim=-1
    )
    return [TaskGroup(f"t{i}", conditions[i], teacher=teachers[i], delta=deltas[i]) for i in range(GROUPS)]


@pytest.fixture
def generator(tiny_base: Base) -> LoRAGenerator:
    made = create_generator(tiny_base.spec, SPEC, GeneratorConfig(basis_rank=8, hidden_size=32, num_blocks=1))
    with torch.no_grad():  # away from the initial generator, whose adapters change nothing
        for b0 in made.b0.values():
            b0.normal_(std=0.05, generator=torch.Generator().manual_seed(1))
    return made


def head(base: Base) -> DeltaHead:
    made = DeltaHead(base.spec, SPEC, [0, 1], DeltaHeadConfig(sketch_size=4, output_rank=8, correction_size=8))
    with torch.no_grad():  # a fresh head predicts zero and passes no gradient to the adapters
        made.linear.normal_(std=0.1, generator=torch.Generator().manual_seed(2))
    return made


def objectives(base: Base, meter: DeltaMeter) -> dict[str, Objective]:
    return {
        "weight": WeightObjective(),
        "delta": DeltaObjective(meter),
        "multitask": DeltaObjective(meter, MultiTaskLoss()),
        "guided, due": DeltaGuidedObjective(meter, head(base), DeltaGuidedLoss(every=1)),
        "guided, not due": DeltaGuidedObjective(meter, head(base), DeltaGuidedLoss(every=5)),
        "guided, no teachers": DeltaGuidedObjective(meter, head(base), DeltaGuidedLoss(every=5), use_teachers=False),
    }


NAMES = ("weight", "delta", "multitask", "guided, due", "guided, not due", "guided, no teachers")
STEP = 1  # not due where N is 5


@pytest.mark.parametrize("name", NAMES)
def test_the_generator_gets_gradients_from_every_objective(
    name: str, tiny_base: Base, meter: DeltaMeter, batch: list[TaskGroup], generator: LoRAGenerator
) -> None:
    loss, parts = objectives(tiny_base, meter)[name](generator, batch, STEP)
    loss.backward()
    for parameter in generator.parameters():
        assert parameter.grad is not None
        assert torch.isfinite(parameter.grad).all()
    assert sum(float(p.grad.abs().sum()) for p in generator.parameters() if p.grad is not None) > 0
    assert all(isinstance(value, float | int) for value in parts.values())


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_of_a_batch_is_the_weighted_mean_of_its_shares(
    name: str, tiny_base: Base, meter: DeltaMeter, batch: list[TaskGroup], generator: LoRAGenerator
) -> None:
    objective = objectives(tiny_base, meter)[name]
    whole = float(objective(generator, batch, STEP)[0].detach())
    shares: list[Sequence[TaskGroup]] = [batch[:1], batch[1:]]
    weights = [objective.weight(share) for share in shares]
    losses = [float(objective(generator, share, STEP)[0].detach()) for share in shares]
    assert whole == pytest.approx(sum(w * x for w, x in zip(weights, losses, strict=True)) / sum(weights), rel=1e-4)


@pytest.mark.parametrize(
    ("name", "forwards"),
    [("weight", 0), ("delta", GROUPS), ("multitask", GROUPS), ("guided, due", GROUPS), ("guided, not due", 0)],
)
def test_passes_of_the_base_are_counted_and_no_others_are_run(
    name: str,
    forwards: int,
    tiny_base: Base,
    meter: DeltaMeter,
    batch: list[TaskGroup],
    generator: LoRAGenerator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ran: list[int] = []
    real = DeltaMeter.deltas
    objective = objectives(tiny_base, meter)[name]

    def counted(self: DeltaMeter, weights: Any) -> torch.Tensor:
        ran.append(len(weights))
        return real(self, weights)

    monkeypatch.setattr(DeltaMeter, "deltas", counted)
    _, parts = objective(generator, batch, STEP)
    assert parts["base_forwards"] == sum(ran) == forwards


def test_a_guided_objective_trains_its_head(
    tiny_base: Base, meter: DeltaMeter, batch: list[TaskGroup], generator: LoRAGenerator
) -> None:
    objective = DeltaGuidedObjective(meter, head(tiny_base), DeltaGuidedLoss(every=1))
    before = {name: p.detach().clone() for name, p in objective.head.named_parameters()}
    train(generator, objective, lambda step: batch, TrainingConfig(steps=2, warmup_steps=0))
    assert any(not torch.equal(p, before[name]) for name, p in objective.head.named_parameters())


@pytest.mark.parametrize("name", ["weight", "delta", "multitask", "guided, due"])
def test_fitting_one_batch_lowers_the_loss(
    name: str, tiny_base: Base, meter: DeltaMeter, batch: list[TaskGroup], generator: LoRAGenerator
) -> None:
    losses: list[float] = []
    config = TrainingConfig(steps=15, learning_rate=1e-2, warmup_steps=2)
    train(
        generator,
        objectives(tiny_base, meter)[name],
        lambda step: batch,
        config,
        on_step=lambda s: losses.append(s.loss),
    )
    assert losses[-1] < 0.9 * losses[0]


def without(batch: list[TaskGroup], **nothing: Any) -> list[TaskGroup]:
    return [batch[0], replace(batch[1], **nothing), *batch[2:]]


@pytest.mark.parametrize(
    ("name", "nothing", "message"),
    [
        ("weight", {"teacher": None}, "no teacher for t1"),
        ("multitask", {"teacher": None}, "no teacher for t1"),
        ("delta", {"delta": None}, "no delta for t1"),
        ("guided, due", {"delta": None}, "no delta for t1"),
        ("weight", {"condition": None}, "no condition for t1"),
        ("delta", {"condition": None}, "no condition for t1"),
        ("guided, due", {"condition": None}, "no condition for t1"),
    ],
)
def test_a_group_that_lacks_something_is_refused_and_never_left_out(
    name: str,
    nothing: dict[str, None],
    message: str,
    tiny_base: Base,
    meter: DeltaMeter,
    batch: list[TaskGroup],
    generator: LoRAGenerator,
) -> None:
    with pytest.raises(ConfigError, match=message):
        objectives(tiny_base, meter)[name](generator, without(batch, **nothing), STEP)


def test_what_a_loss_does_not_need_may_be_missing(
    tiny_base: Base, meter: DeltaMeter, batch: list[TaskGroup], generator: LoRAGenerator
) -> None:
    DeltaObjective(meter, DeltaOnlyLoss())(generator, without(batch, teacher=None), STEP)
    WeightObjective(WeightLoss())(generator, without(batch, delta=None), STEP)
    made = objectives(tiny_base, meter)
    made["guided, no teachers"](generator, without(batch, teacher=None), STEP)
