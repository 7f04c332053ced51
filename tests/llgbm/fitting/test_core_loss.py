import pytest
import torch

from llgbm.base import Base
from llgbm.chat import answer_ids, prompt_ids, task_messages
from llgbm.errors import AdapterMismatchError, ConfigError
from llgbm.fitting.core_loss import CoreMetric, CoreObjective, input_moments
from llgbm.functional import FunctionalLoRA
from llgbm.generator import LoRAGenerator
from llgbm.packing import Row, TaskGroup, pack
from llgbm.training import TrainingConfig, train
from tests.small_generator import active_generator, conditions


@pytest.fixture
def generator() -> LoRAGenerator:
    return active_generator().requires_grad_(False)


def moments_of(generator: LoRAGenerator, inputs: list[torch.Tensor]) -> torch.Tensor:
    reads = [x @ a0.T for x, a0 in zip(inputs, generator.input_bases(), strict=True)]
    return torch.stack([z.T @ z / len(z) for z in reads])


def random_inputs(generator: LoRAGenerator, tokens: int = 400) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(3)
    scales = [torch.rand(m.in_features, generator=draw) for m in generator.lora.modules]
    return [torch.randn(tokens, len(s), generator=draw) * s for s in scales]


def test_the_distance_is_that_of_the_modules_outputs(generator: LoRAGenerator) -> None:
    inputs = random_inputs(generator)
    q, p = generator.cores(conditions(2))
    mapped = CoreMetric(generator, moments_of(generator, inputs))(q, p)
    found = (mapped[0] - mapped[1]).square().sum((-1, -2))
    one, other = generator.materialise(q, p)
    for place, name in enumerate(generator.lora.names):
        moved = [inputs[place] @ (w.b[name] @ w.a[name]).T for w in (one, other)]
        expected = (moved[0] - moved[1]).square().sum(-1).mean()
        torch.testing.assert_close(found[place], expected, rtol=1e-3, atol=1e-7)


def test_moments_of_another_generator_are_refused(generator: LoRAGenerator) -> None:
    with pytest.raises(AdapterMismatchError, match=r"moments have shape \(1, 8, 8\)"):
        CoreMetric(generator, torch.eye(8)[None])


def test_moments_are_of_what_the_modules_read_under_the_adapter(tiny_base: Base, generator: LoRAGenerator) -> None:
    tokenizer = tiny_base.tokenizer
    rows = [Row(prompt_ids(tokenizer, task_messages(text)), answer_ids(tokenizer, "yes")) for text in ("a cat", "dogs")]
    weights = generator(conditions(1))[0]
    functional = FunctionalLoRA(tiny_base.model)
    batch = pack([rows])
    found = input_moments(tiny_base, functional, generator, [(batch, weights), (pack([rows[:1]]), weights)])
    plain = input_moments(tiny_base, functional, generator, [(batch, None), (pack([rows[:1]]), None)])
    read: dict[str, list[torch.Tensor]] = {name: [] for name in generator.lora.names}
    with torch.no_grad():
        for row in [*rows, rows[0]]:
            handles = [
                tiny_base.model.get_submodule(name).register_forward_pre_hook(
                    lambda _, args, name=name: read[name].append(args[0][0])
                )
                for name in read
            ]
            with functional.applied(weights):
                tiny_base.model.get_submodule("model")(torch.tensor([[*row.prompt, *row.answer]]))
            for handle in handles:
                handle.remove()
    # the common prefix of a group's rows is read once
    shared = next(i for i, (x, y) in enumerate(zip(rows[0].prompt, rows[1].prompt, strict=False)) if x != y)
    for place, name in enumerate(generator.lora.names):
        first, second, again = read[name]
        tokens = torch.cat([first[1:], second[shared:], again[1:]]) @ generator.input_bases()[place].T
        torch.testing.assert_close(found[place], tokens.T @ tokens / len(tokens), rtol=1e-3, atol=1e-6)
    assert not torch.allclose(found[-1], plain[-1], rtol=1e-3)


def test_moments_of_nothing_are_refused(tiny_base: Base, generator: LoRAGenerator) -> None:
    with pytest.raises(AdapterMismatchError, match="no rows"):
        input_moments(tiny_base, FunctionalLoRA(tiny_base.model), generator, [])


def objective_of(generator: LoRAGenerator, targets: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> CoreObjective:
    return CoreObjective(CoreMetric(generator, moments_of(generator, random_inputs(generator))), targets)


def targets_of(generator: LoRAGenerator, asked: torch.Tensor) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    q, p = generator.cores(asked)
    return {f"task{i}": (q[i], p[i]) for i in range(len(asked))}


def test_zero_is_all_targets_hit_and_one_is_their_mean(generator: LoRAGenerator) -> None:
    asked = conditions(5)
    groups = [TaskGroup(f"task{i}", c) for i, c in enumerate(asked)]
    objective = objective_of(generator, targets_of(generator, asked))
    assert float(objective(generator, groups, 0)[0]) == pytest.approx(0, abs=1e-6)
    wrong = [TaskGroup(f"task{(i + 1) % 5}", c) for i, c in enumerate(asked)]
    assert float(objective(generator, wrong, 0)[0]) > 1

    class Mean(LoRAGenerator):
        def cores(self, condition: torch.Tensor | None, count: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
            """Cores whose product is the mean of all products; with R = r no factorisation is needed."""
            assert condition is not None
            q, p = LoRAGenerator.cores(self, asked)
            mean = (p @ q).mean(0)
            eye = torch.eye(mean.shape[-1]).expand_as(mean)
            return eye.expand(len(condition), -1, -1, -1), mean.expand(len(condition), -1, -1, -1)

    generator.__class__ = Mean
    assert float(objective(generator, groups, 0)[0]) == pytest.approx(1, abs=1e-3)


def test_training_teaches_the_trunk_and_leaves_the_bases(generator: LoRAGenerator) -> None:
    asked = conditions(4, seed=5)
    objective = objective_of(generator, targets_of(active_generator(seed=2), asked))
    groups = [TaskGroup(f"task{i}", c) for i, c in enumerate(asked)]
    generator.requires_grad_(True)
    bases = [p.detach().clone() for p in generator.shared_parameters()]
    before = float(objective(generator, groups, 0)[0].detach())
    settings = TrainingConfig(steps=60, learning_rate=5e-3, shared_rate=0, warmup_steps=5)
    train(generator, objective, lambda step: groups, settings)
    assert float(objective(generator, groups, 0)[0].detach()) < 0.5 * before
    for now, then in zip(generator.shared_parameters(), bases, strict=True):
        torch.testing.assert_close(now.detach(), then, atol=0, rtol=0)


def test_a_single_target_is_refused(generator: LoRAGenerator) -> None:
    with pytest.raises(ConfigError, match="at least two tasks"):
        objective_of(generator, targets_of(generator, conditions(1)))
