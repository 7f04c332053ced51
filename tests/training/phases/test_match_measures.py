import pytest
import torch

from llgbm.base import Base
from llgbm.config import GeneratorConfig, lora_spec
from llgbm.delta import DeltaMeter, delta_cosine
from llgbm.generator import create_generator
from llgbm.probes import ProbeSet
from training.phases.match_measures import METRICS, Case, Score, baselines, score_cases, summarise

CONDITIONS = torch.nn.functional.normalize(torch.randn(10, 384, generator=torch.Generator().manual_seed(0)), dim=-1)


def case(index: int, task: str, delta: torch.Tensor, base: Base) -> Case:
    weights = create_generator(base.spec, lora_spec("tiny")).shared_adapter().detach()
    return Case(f"{task}_000", task, "d", CONDITIONS[index], weights, delta)


def test_a_generator_measured_against_itself_is_perfect(tiny_base: Base) -> None:
    meter = DeltaMeter(tiny_base, ProbeSet(("a", "b"), chat=False), [0, 1])
    generator = create_generator(tiny_base.spec, lora_spec("tiny"), GeneratorConfig(basis_rank=8, hidden_size=16))
    with torch.no_grad():
        for b0 in generator.b0.values():
            b0.normal_(std=0.1)
        made = generator(CONDITIONS)
        deltas = meter.deltas(made)
    cases = [Case(f"t{i}", f"t{i}", "d", CONDITIONS[i], made[i], deltas[i]) for i in range(10)]  # two passes
    for score in score_cases(generator, meter, cases):
        assert score.cosine == pytest.approx(1, abs=1e-4)
        assert score.error == pytest.approx(0, abs=1e-4)
        assert score.norm_ratio == pytest.approx(1, abs=1e-4)
        assert score.weight_error == pytest.approx(0, abs=1e-6)
        assert score.wrong_cosine < 1


def test_an_adapter_with_many_descriptions_counts_once() -> None:
    def score(adapter: str, value: float) -> Score:
        return Score(adapter, value, value, value, value, value)

    found = summarise([score("a", 1.0), score("a", 0.0), score("a", 0.5), score("b", 0.1)], "train")
    assert found == {f"train_{name}": pytest.approx(0.3) for name in METRICS}
    assert summarise([], "train") == {}


def test_cosine_sees_direction_alone_and_a_zero_delta_has_none() -> None:
    delta = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    assert delta_cosine(3 * delta, delta) == pytest.approx(1)
    assert delta_cosine(-delta, delta) == pytest.approx(-1)
    assert delta_cosine(torch.zeros(2, 2), delta) == 0


def test_baselines_leave_out_the_task_itself(tiny_base: Base) -> None:
    def delta(*values: float) -> torch.Tensor:
        return torch.tensor([[list(values)]], dtype=torch.float32)

    train = [case(0, "x", delta(1, 0), tiny_base), case(1, "y", delta(0, 1), tiny_base)]
    same_prompt_as_x = case(0, "z", delta(1, 0), tiny_base)
    found = baselines([same_prompt_as_x], train, "heldout")
    assert found["heldout_nearest_teacher_cosine"] == pytest.approx(1)
    assert found["heldout_mean_teacher_cosine"] == pytest.approx(0.5**0.5)
    assert baselines(train, train, "train")["train_mean_teacher_cosine"] == pytest.approx(0)
    assert baselines(train[:1], train[:1], "train") == {}
    twice = [same_prompt_as_x, same_prompt_as_x, case(1, "w", delta(1, 1), tiny_base)]
    each_once = baselines(twice[1:], [*train, train[0]], "heldout")
    assert baselines(twice, train, "heldout") == pytest.approx(each_once)
    assert baselines([], train, "heldout") == {}
