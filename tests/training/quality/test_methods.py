from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llgbm.checkpoint import Checkpoint, GeneratorManifest, TrainingTask
from llgbm.conditioning.context_choice import ContextBin, ContextChoice, ContextSetting
from llgbm.conditioning.prompt_index import PromptIndex
from llgbm.config import GeneratorConfig, lora_spec, model_spec
from llgbm.generator import create_generator
from llgbm.lora import LoRAWeights
from llgbm.text_encoder import PretrainedTextEncoder
from tests.fixtures import random_lora, same_weights
from tests.training.conftest import small_tasks
from training.quality.methods import FIXED_CONTEXTS, METHODS, MethodSources, mean_adapter

SPEC = lora_spec("tiny")
TASKS = {task.task_id: task for task in small_tasks()}


@pytest.fixture(scope="module")
def sources(tiny_encoder_path: Path) -> MethodSources:
    """A generator that was trained on all tasks but `title`, which has a teacher all the same."""
    encoder = PretrainedTextEncoder(tiny_encoder_path)
    config = GeneratorConfig(basis_rank=8, hidden_size=16, num_blocks=1)
    generator = create_generator(model_spec("tiny"), SPEC, config).eval().requires_grad_(False)
    for b0 in generator.b0.values():
        b0.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    listed = [t for t in small_tasks() if t.task_id != "title"]
    manifest = GeneratorManifest(
        "base", "revision", "encoder", model_spec("tiny"), SPEC, config,
        tuple(TrainingTask(t.task_id, t.category, "s", "l", t.seen_descriptions) for t in listed),
        context_choice=ContextChoice.of_scales(similarity=-1.0, far=0.1, near=0.5),
    )  # fmt: skip
    embeddings = [encoder.encode(t.seen_descriptions) for t in listed]
    index = PromptIndex(torch.cat(embeddings), torch.tensor([i for i, e in enumerate(embeddings) for _ in e]))
    return MethodSources(
        checkpoint=Checkpoint(generator, manifest, index),
        encoder=encoder,
        teachers={name: random_lora(SPEC, seed) for seed, name in enumerate(TASKS)},
        multitask=random_lora(SPEC, 99),
        others=dict.fromkeys(TASKS, "do something else"),
        seed=0,
    )


def same(x: LoRAWeights | None, y: LoRAWeights | None) -> bool:
    if x is None or y is None:
        return x is y
    return same_weights(x, y)


def adapter_of(sources: MethodSources, method: str, task: str = "upper") -> LoRAWeights | None:
    setup = METHODS[method](sources, TASKS[task])
    assert setup is not None
    return setup.adapter


@pytest.mark.parametrize("method", [name for name in METHODS if name not in FIXED_CONTEXTS])
def test_the_context_holds_what_the_name_says(sources: MethodSources, method: str) -> None:
    setup = METHODS[method](sources, TASKS["upper"])
    assert setup is not None
    assert (setup.description is not None) == ("+ description" in method)
    assert setup.description in (None, *TASKS["upper"].unseen_descriptions)
    assert len(setup.shots) == (3 if "+ 3 examples" in method or "+ description + 3" in method else 0)
    assert (setup.adapter is None) == method.startswith("base")


def test_the_prompt_alone_decides_what_is_generated(sources: MethodSources) -> None:
    right = adapter_of(sources, "generated")
    assert same(right, adapter_of(sources, "generated + description"))
    for method in ("generated, wrong description", "generated, gibberish", "generated from 3 examples"):
        assert not same(right, adapter_of(sources, method))
    assert same(
        adapter_of(sources, "generated, wrong description"),
        adapter_of(sources, "generated, wrong description", "next"),
    )


def test_a_description_trained_on_is_one_of_the_manifests(sources: MethodSources) -> None:
    seen = TASKS["upper"].seen_descriptions
    for seed in range(3):
        seeded = replace(sources, seed=seed)
        made = adapter_of(seeded, "generated, description trained on")
        assert same(made, seeded.generate([seen[seed % len(seen)]]))
        assert not same(made, adapter_of(seeded, "generated"))
    assert METHODS["generated, description trained on"](sources, TASKS["title"]) is None


@pytest.mark.parametrize(
    ("method", "whole"),
    [
        ("generated, scaled + description", "generated"),
        ("generated, wrong description, scaled + description", "generated, wrong description"),
        ("multi-task LoRA, scaled + description", "multi-task LoRA"),
    ],
)
def test_the_scale_in_context_is_that_of_the_tasks_own_description(
    sources: MethodSources, method: str, whole: str
) -> None:
    found, expected = adapter_of(sources, method), adapter_of(sources, whole)
    assert found is not None
    assert expected is not None
    for name in SPEC.names:
        torch.testing.assert_close(found.delta_weight(name), 0.5 * expected.delta_weight(name))
    manifest = replace(sources.checkpoint.manifest, context_choice=None)
    uncalibrated = replace(sources, checkpoint=replace(sources.checkpoint, manifest=manifest))
    assert METHODS[method](uncalibrated, TASKS["upper"]) is None


@pytest.mark.parametrize(
    ("method", "twin"),
    [
        ("auto", "generated, scaled + description"),
        ("auto with 3 examples", "generated + description + 3 examples"),
        ("generated, scaled + description + 3 examples", "generated + description + 3 examples"),
    ],
)
def test_auto_is_the_fixed_choice_that_calibration_ranked_first(sources: MethodSources, method: str, twin: str) -> None:
    found, expected = (METHODS[name](sources, TASKS["upper"]) for name in (method, twin))
    assert found is not None
    assert expected is not None
    assert same(found.adapter, expected.adapter)
    assert (found.description, found.shots) == (expected.description, expected.shots)


def test_auto_may_leave_out_the_description_or_the_adapter(sources: MethodSources) -> None:
    alone, described = ContextSetting("none"), ContextSetting("description", 0.0)
    shown = ContextSetting("examples", 0.0)
    for ranking, twin in (
        ((alone, described), "generated"),
        ((described, alone), "base + description"),
    ):
        choice = ContextChoice((ContextBin(0.0, ranking),), (ContextBin(0.0, (shown, *ranking)),))
        manifest = replace(sources.checkpoint.manifest, context_choice=choice)
        other = replace(sources, checkpoint=replace(sources.checkpoint, manifest=manifest))
        for method, same_as in (("auto", twin), ("auto with 3 examples", "base + description + 3 examples")):
            found, expected = (METHODS[name](other, TASKS["upper"]) for name in (method, same_as))
            assert found is not None
            assert expected is not None
            assert same(found.adapter, expected.adapter)
            assert (found.description, found.shots) == (expected.description, expected.shots)


def test_retrieval_never_takes_the_tasks_own_teacher_nor_one_not_trained_on(sources: MethodSources) -> None:
    for name in TASKS:
        found = adapter_of(sources, "nearest task's teacher", name)
        assert any(same(found, sources.teachers[other]) for other in TASKS if other not in (name, "title"))


def test_retrieval_may_find_the_tasks_own_teacher_where_it_is_allowed(sources: MethodSources) -> None:
    method = "nearest task's teacher, its own among them"
    assert all(same(adapter_of(sources, method, n), sources.teachers[n]) for n in ("upper", "parity"))


def test_a_task_not_trained_on_is_described_by_its_first_wording(sources: MethodSources) -> None:
    assert sources.description(TASKS["title"]) == TASKS["title"].descriptions[0]
    assert sources.description(TASKS["upper"]) == TASKS["upper"].unseen_descriptions[0]


def test_retrieval_goes_to_the_nearest_description(sources: MethodSources) -> None:
    query = sources.encoder.encode([sources.description(TASKS["title"])])[0]
    best = max(
        (name for name in TASKS if name != "title"),
        key=lambda name: float((sources.encoder.encode(TASKS[name].seen_descriptions) @ query).max()),
    )
    assert same(adapter_of(sources, "nearest task's teacher", "title"), sources.teachers[best])


def test_a_sharp_softmax_is_the_nearest_and_a_flat_one_the_mean(sources: MethodSources) -> None:
    title = TASKS["title"]
    sharp = sources.retrieved(title, count=5, temperature=1e-4)
    assert sharp is not None
    nearest = sources.retrieved(title, count=1)
    assert nearest is not None
    torch.testing.assert_close(sharp.b[SPEC.names[0]], nearest.b[SPEC.names[0]])
    flat = sources.retrieved(title, count=5, temperature=1e6)
    assert flat is not None
    assert sources.mean_teacher is not None
    torch.testing.assert_close(flat.a[SPEC.names[0]], sources.mean_teacher.a[SPEC.names[0]])


def test_a_mean_of_adapters_with_one_a_is_exact() -> None:
    first = random_lora(SPEC, 0)
    second = LoRAWeights(SPEC, first.a, random_lora(SPEC, 1).b)
    mean = mean_adapter([first, second], torch.tensor([0.25, 0.75]))
    name = SPEC.names[0]
    expected = 0.25 * first.delta_weight(name) + 0.75 * second.delta_weight(name)
    torch.testing.assert_close(mean.delta_weight(name), expected, rtol=1e-4, atol=1e-5)


def test_shots_are_the_same_for_every_method_and_come_from_training_rows(sources: MethodSources) -> None:
    shots = [METHODS[m](sources, TASKS["next"]).shots for m in ("base + 3 examples", "base + description + 3 examples")]  # type: ignore[union-attr]
    assert shots[0] == shots[1]
    assert set(shots[0]) <= set(TASKS["next"].train)
