from dataclasses import replace

import pytest
import torch

from llgbm.base import Base
from llgbm.chat import answer_ids, prompt_ids, task_messages
from llgbm.errors import ConfigError
from llgbm.fitting.objectives import TaskObjective, generated_groups
from llgbm.fitting.task_cores import TaskCores, TaskCoresAdam
from llgbm.packing import Row, TaskGroup, TrainingBatch
from llgbm.training import TrainingConfig, train
from tests.small_generator import active_generator


def condition(seed: int) -> torch.Tensor:
    size = active_generator().config.condition_size
    return torch.nn.functional.normalize(torch.randn(size, generator=torch.Generator().manual_seed(seed)), dim=0)


def batch_of(base: Base, *task_ids: str) -> TrainingBatch:
    answers = {"one": "yes", "two": "no", "other": "maybe"}
    rows = {
        task: [Row(prompt_ids(base.tokenizer, task_messages(task)), answer_ids(base.tokenizer, answer))]
        for task, answer in answers.items()
    }
    return [TaskGroup(task, condition(len(task)), rows[task]) for task in task_ids]


def test_only_tasks_with_cores_of_their_own_leave_what_is_generated_and_only_from_the_first_step_on() -> None:
    generator = active_generator()
    own = TaskCores(["one", "two"], generator, first_step=3)
    torch.nn.init.normal_(own.q)
    torch.nn.init.normal_(own.p)
    q, p = generator.cores(torch.stack([condition(1), condition(2), condition(3)]))
    for step in (0, 2):
        assert own.added(q, p, ["two", "other", "one"], step) == (q, p)
    with_own = own.added(q, p, ["two", "other", "one"], 3)
    for made, now, added in zip((q, p), with_own, (own.q, own.p), strict=True):
        torch.testing.assert_close(now, made + torch.stack([added[1], torch.zeros_like(added[0]), added[0]]))
    assert own.added(q, p, ["other", "other", "other"], 3) == (q, p)


def test_a_task_that_a_step_does_not_see_stays_where_it_is() -> None:
    stack = torch.nn.Parameter(torch.zeros(3, 2, 4, 5))
    optimiser = TaskCoresAdam([stack], lr=0.1)
    gradient = torch.zeros_like(stack)
    gradient[1] = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0))
    for _ in range(4):  # with a constant gradient Adam moves by the rate, times the gradient scaled to unit mean square
        stack.grad = gradient.clone()
        optimiser.step()
    root = gradient[1].square().mean((-1, -2), keepdim=True).sqrt()
    torch.testing.assert_close(stack[1].detach(), -0.4 * gradient[1] / root)
    assert not stack[[0, 2]].any()
    moved = stack[1].detach().clone()
    stack.grad = gradient.flip(0).roll(1, 0)  # another task's
    optimiser.step()
    assert torch.equal(stack[1].detach(), moved)
    assert stack[[0, 2]].any()


def test_training_moves_the_cores_of_tasks_beside_the_generator(
    tiny_base: Base, tmp_path_factory: pytest.TempPathFactory
) -> None:
    batch = batch_of(tiny_base, "one", "two", "other")
    config = TrainingConfig(steps=8, learning_rate=1e-3, warmup_steps=0, decay_fraction=0, task_rate=20)

    def trained(*, own: bool, halves: bool = False) -> tuple[TaskCores, float]:
        generator = active_generator()
        cores = TaskCores(["one", "two"], generator, first_step=2)
        objective = TaskObjective(tiny_base, label_smoothing=0, task_cores=cores if own else None)
        path = tmp_path_factory.mktemp("state") / "state.pt"
        for steps in (4, 8) if halves else (8,):
            train(generator, objective, lambda _: batch, replace(config, steps=steps), state_path=path)
        return cores, float(objective(generator, batch, 8)[0].detach())

    (cores, loss), (_, without), (again, _) = trained(own=True), trained(own=False), trained(own=True, halves=True)
    assert loss < without
    assert cores.q.any()
    assert cores.p.any()
    torch.testing.assert_close(again.q, cores.q)
    torch.testing.assert_close(again.p, cores.p)


def test_the_adapters_of_a_batch_have_what_is_added(tiny_base: Base) -> None:
    generator, batch = active_generator(), batch_of(tiny_base, "one", "other")
    own = TaskCores(["one"], generator)
    torch.nn.init.normal_(own.q)
    plain = generated_groups(generator, batch)[0]
    adapters = generated_groups(generator, batch, lambda q, p, tasks: own.added(q, p, tasks, 0))[0]
    name = generator.lora.names[0]
    assert not torch.allclose(adapters[0].a[name], plain[0].a[name])
    torch.testing.assert_close(adapters[1].a[name], plain[1].a[name])


@pytest.mark.parametrize("tasks", [[], ["one", "one"]])
def test_no_task_and_a_task_twice_are_refused(tasks: list[str]) -> None:
    with pytest.raises(ConfigError, match="each once"):
        TaskCores(tasks, active_generator())


def test_a_bad_rate_is_refused() -> None:
    with pytest.raises(ConfigError, match="task_rate"):
        TrainingConfig(task_rate=-1)
