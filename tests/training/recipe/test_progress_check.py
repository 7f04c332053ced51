from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from llgbm.base import Base
from llgbm.chat import answer_ids, prompt_ids, task_messages
from llgbm.errors import ConfigError
from llgbm.evaluation import score_rows
from llgbm.text_encoder import PretrainedTextEncoder
from tests.small_generator import active_generator
from tests.training.recipe.sampler_runs import Recorder
from training.recipe.progress_check import CheckConfig, ProgressCheck
from training.tasks.format import Example, Task
from training.tasks.rows import eval_row


def task(name: str, label: str, *, num_test: int = 4) -> Task:
    rows = tuple(Example(f"{name} {i}", label) for i in range(6))
    test = tuple(Example(f"{name} test {i}", label, ("other",)) for i in range(num_test))
    wordings = tuple(f"{name}: say {label}, wording {i}" for i in range(5))
    return Task(name, "labels", "made for tests", "CC0-1.0", wordings, "exact_match", None, rows, test)


TASKS = [task("a", "x"), task("b", "yes"), task("c", "no"), task("d", "maybe")]
CONFIG = CheckConfig(every=10, num_tasks=3, num_rows=2)


def test_results_are_those_of_unseen_prompts_on_test_rows(tiny_base: Base, encoder: PretrainedTextEncoder) -> None:
    recorder = Recorder(encoder)
    generator = active_generator()
    found = ProgressCheck(CONFIG, TASKS, tiny_base, recorder).run(generator)
    chosen = [TASKS[0], TASKS[1], TASKS[3]]
    prompts = [t.unseen_descriptions[0] for t in chosen]
    assert recorder.seen == prompts
    rows = [[eval_row(tiny_base, e) for e in t.test[:2]] for t in chosen]
    with torch.inference_mode():
        right = generator(encoder.encode(prompts))
        wrong = generator(encoder.encode([prompts[2], prompts[0], prompts[1]]))
        shared = [generator.shared_adapter()] * 3
    expected = {}
    for name, adapters in {"right": right, "wrong": wrong, "shared": shared}.items():
        scores = score_rows(tiny_base, list(zip(adapters, rows, strict=True)))
        expected[f"check_{name}_accuracy"] = np.mean([np.mean([s.correct for s in task]) for task in scores])
        expected[f"check_{name}_log_likelihood"] = np.mean([s.log_likelihood for task in scores for s in task])
    assert found == pytest.approx(expected, abs=1e-5)
    assert len({round(found[f"check_{name}_log_likelihood"], 4) for name in ("right", "wrong", "shared")}) == 3


def test_a_generator_that_ignores_the_prompt_is_seen_to(tiny_base: Base, encoder: PretrainedTextEncoder) -> None:
    generator = active_generator()
    with torch.no_grad():
        generator.heads.zero_()
    found = ProgressCheck(CONFIG, TASKS, tiny_base, encoder).run(generator)
    for what in ("accuracy", "log_likelihood"):
        assert found[f"check_right_{what}"] == pytest.approx(found[f"check_wrong_{what}"], abs=1e-5)
        assert found[f"check_right_{what}"] == pytest.approx(found[f"check_shared_{what}"], abs=1e-5)


def test_a_check_changes_neither_the_generator_nor_its_gradients(
    tiny_base: Base, encoder: PretrainedTextEncoder
) -> None:
    generator = active_generator().train()
    before = {name: p.clone() for name, p in generator.named_parameters()}
    ProgressCheck(CONFIG, TASKS, tiny_base, encoder).run(generator)
    assert generator.training
    for name, parameter in generator.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None
        assert parameter.requires_grad


def test_checks_are_due_every_so_often_and_at_the_end(tiny_base: Base, encoder: PretrainedTextEncoder) -> None:
    check = ProgressCheck(CONFIG, TASKS, tiny_base, encoder)
    assert [done for done in range(1, 36) if check.due(done, 35)] == [10, 20, 30, 35]


def test_no_check_costs_nothing(tiny_base: Base, encoder: PretrainedTextEncoder) -> None:
    recorder = Recorder(encoder)
    check = ProgressCheck(replace(CONFIG, every=0), TASKS, tiny_base, recorder)
    assert not any(check.due(done, 35) for done in range(1, 36))
    assert check.run(active_generator()) == {}
    assert recorder.seen == []


def test_tasks_without_test_rows_are_left_out(tiny_base: Base, encoder: PretrainedTextEncoder) -> None:
    empty = [task("e", "x", num_test=0), task("f", "y", num_test=0)]
    assert ProgressCheck(CONFIG, empty, tiny_base, encoder).run(active_generator()) == {}
    found = ProgressCheck(CONFIG, [empty[0], TASKS[0], empty[1]], tiny_base, encoder).run(active_generator())
    assert "check_right_accuracy" in found
    assert "check_wrong_accuracy" not in found  # there is no other task to take a wrong prompt from


def test_rows_of_the_evaluation_are_left_to_it(tiny_base: Base, encoder: PretrainedTextEncoder) -> None:
    generator, skipping = active_generator(), replace(CONFIG, skip_rows=2)
    later = [replace(t, test=t.test[2:]) for t in TASKS]
    expected = ProgressCheck(CONFIG, later, tiny_base, encoder).run(generator)
    assert ProgressCheck(skipping, TASKS, tiny_base, encoder).run(generator) == pytest.approx(expected, abs=1e-6)
    assert ProgressCheck(replace(CONFIG, skip_rows=4), TASKS, tiny_base, encoder).run(generator) == {}


def test_a_row_holds_every_accepted_answer_and_what_is_in_its_context(tiny_base: Base) -> None:
    tokenizer = tiny_base.tokenizer
    row = eval_row(tiny_base, Example("1 + 1", "2", ("two", "2")))
    assert row.prompt == prompt_ids(tokenizer, task_messages("1 + 1"))
    assert row.answers == (answer_ids(tokenizer, "2"), answer_ids(tokenizer, "two"))
    shown = eval_row(
        tiny_base, Example("c", "C"), description="Capitals.", shots=[Example("a", "A"), Example("b", "B")]
    )
    examples = [("a", "A"), ("b", "B")]
    assert shown.prompt == prompt_ids(tokenizer, task_messages("c", description="Capitals.", examples=examples))


@pytest.mark.parametrize("change", [{"every": -1}, {"skip_rows": -1}, {"num_tasks": 0}, {"num_rows": 0}])
def test_settings_out_of_range_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="must be at least 1"):
        replace(CONFIG, **change)
