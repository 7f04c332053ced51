import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llgbm.checkpoint import load_generator
from llgbm.config import GeneratorConfig
from llgbm.errors import CheckpointError, ConfigError
from llgbm.training import TrainingConfig
from tests.small_generator import calibrate_artefact
from training.quality import evaluate
from training.recipe import amortise, cores, fit
from training.recipe.conditions import ConditionConfig
from training.recipe.progress_check import CheckConfig
from training.recipe.sampler import SamplerConfig
from training.runs.metrics import read_metrics
from training.runs.results import read_result
from training.tasks.format import load_task, save_task

STEPS = 12
IDS = ("first", "next", "upper")


@pytest.fixture
def config(tmp_path: Path, tasks_folder: Path, tiny_base_path: Path, tiny_encoder_path: Path) -> cores.Config:
    """Of a generator with four steps on all tasks and one procedural one."""
    fitted = fit.Config(
        workdir=tmp_path / "fit", tasks=tasks_folder, synthetic_tasks=2,
        base=str(tiny_base_path), text_encoder=str(tiny_encoder_path),
        generator=GeneratorConfig(hidden_size=32, basis_rank=8, num_blocks=1),
        sampler=SamplerConfig(groups=3, synthetic_groups=1, max_row_tokens=400),
        training=TrainingConfig(steps=4, warmup_steps=1, learning_rate=1e-2), check=CheckConfig(every=0),
    )  # fmt: skip
    fit.run(fitted)
    return cores.Config(
        workdir=tmp_path / "cores", checkpoint=fitted.artefact, tasks=tasks_folder, task_ids=IDS,
        base=str(tiny_base_path), steps=STEPS, learning_rate=3e-2, enough=0,
        sampler=SamplerConfig(groups=1, tokens_per_group=2000, context_fraction=0, shared_fraction=0),  # all rows
    )  # fmt: skip


@pytest.fixture
def amortised(config: cores.Config, tmp_path: Path) -> amortise.Config:
    """`cores` of these settings has been run."""
    cores.run(config)
    return amortise.Config(
        workdir=tmp_path / "amortise", cores=config.workdir, checkpoint=config.checkpoint, tasks=config.tasks,
        synthetic_tasks=2, groups=6, synthetic_groups=1, base=config.base,
        conditions=ConditionConfig(example_fraction=0, mixed_fraction=0, noise=0),
        training=TrainingConfig(steps=40, learning_rate=1e-2, shared_rate=0, warmup_steps=2),
    )  # fmt: skip


def test_cores_do_their_tasks_better_and_are_not_made_twice(config: cores.Config) -> None:
    cores.run(replace(config, task_ids=IDS[:1]))
    first = cores.core_file(config.workdir, "first").read_bytes()
    cores.run(config)
    assert cores.core_file(config.workdir, "first").read_bytes() == first
    lines = read_metrics(config.workdir / "metrics" / "cores.jsonl")
    assert [line["task"] for line in lines] == list(IDS)
    assert all(line["steps"] == STEPS and line["loss_after"] < line["loss_before"] for line in lines)
    checkpoint = load_generator(config.checkpoint)
    found = cores.load_cores(config.workdir, checkpoint, [*IDS, "parity"])
    assert set(found) == set(IDS)
    assert cores.generators_of(config.workdir) == {checkpoint.manifest.digest}
    assert cores.generators_of(config.workdir / "nowhere") == set()
    (adapter,) = checkpoint.generator.materialise(found["next"].q[None], found["next"].p[None])
    assert adapter.spec == checkpoint.manifest.lora


def test_side_by_side_every_task_gets_what_it_gets_alone(config: cores.Config, tmp_path: Path) -> None:
    alone = replace(config, workdir=tmp_path / "alone", side_by_side=1)
    cores.run(alone)
    cores.run(replace(config, side_by_side=2))  # the third takes the place of the first that is done
    checkpoint = load_generator(config.checkpoint)
    one, two = (cores.load_cores(c.workdir, checkpoint, IDS) for c in (alone, config))
    for task in IDS:
        torch.testing.assert_close(one[task].q, two[task].q, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(one[task].p, two[task].p, rtol=1e-3, atol=1e-4)
    cores.run(replace(config, side_by_side=3))  # no other settings: nothing is made again


def test_cores_stop_when_they_are_good_enough(config: cores.Config) -> None:
    cores.run(replace(config, enough=100.0))
    assert {line["steps"] for line in read_metrics(config.workdir / "metrics" / "cores.jsonl")} == {4}


def test_cores_with_other_settings_or_for_other_bases_are_refused(config: cores.Config) -> None:
    cores.run(replace(config, steps=2))
    with pytest.raises(ConfigError, match=r"first\.safetensors was made with other settings \(steps 2 instead of 3\)"):
        cores.run(replace(config, steps=3))
    other = load_generator(config.checkpoint)
    with torch.no_grad():
        other.generator.output_bases()[0][0, 0] += 1
    with pytest.raises(CheckpointError, match="cores for other bases"):
        cores.load_cores(config.workdir, other, IDS)
    cores.core_file(config.workdir, "first").write_bytes(b"torn")
    with pytest.raises(CheckpointError, match="no readable cores"):
        cores.run(replace(config, steps=2))


def test_cores_are_not_trained_through_a_base_that_passes_no_gradients(config: cores.Config) -> None:
    with pytest.raises(ConfigError, match="load it with int8_training"):
        cores.run(replace(config, base_storage="int8"))
    assert not list(config.workdir.glob("*.safetensors"))


@pytest.mark.parametrize(
    "sampler", [SamplerConfig(groups=2, shared_fraction=0), SamplerConfig(groups=1, shared_fraction=0.1)]
)
def test_a_step_is_one_group_with_a_condition(sampler: SamplerConfig) -> None:
    with pytest.raises(ConfigError, match="a step is one group"):
        cores.Config(sampler=sampler)


def test_the_trunk_learns_the_cores_and_keeps_the_rest(amortised: amortise.Config) -> None:
    amortise.run(amortised)
    before, after = load_generator(amortised.checkpoint), load_generator(amortised.artefact)
    found = read_result(amortised.workdir / "results" / "amortise.json")
    assert found["end"]["seen_descriptions"] < 0.5 * found["start"]["seen_descriptions"]
    assert set(found["directions"]) == {"targets", "start", "end"}
    assert found["directions"]["targets"]["4"] == pytest.approx(1, abs=0.2)  # of six tasks
    assert found["generator"] == after.manifest.digest
    assert found["last_run_seconds"] == after.manifest.made_by["last_run_seconds"]
    assert found["tasks_with_cores"] == len(IDS) == sum(found["steps_to_cores"].values())
    assert after.manifest.tasks == before.manifest.tasks
    assert after.manifest.made_by["started_from"]["digest"] == before.manifest.digest
    torch.testing.assert_close(after.prompt_index.task, before.prompt_index.task)
    torch.testing.assert_close(after.prompt_index.embeddings, before.prompt_index.embeddings, atol=1e-3, rtol=0)
    for now, then in zip(after.generator.shared_parameters(), before.generator.shared_parameters(), strict=True):
        torch.testing.assert_close(now, then, atol=1e-4, rtol=0)


def test_cores_go_on_with_a_trunk_that_has_learnt_them(amortised: amortise.Config, tmp_path: Path) -> None:
    amortise.run(amortised)
    further = cores.Config(
        workdir=tmp_path / "further", checkpoint=amortised.artefact, start=amortised.cores, tasks=amortised.tasks,
        task_ids=IDS, base=amortised.base, steps=2, seed=1,
    )  # fmt: skip
    cores.run(further)
    amortise.run(replace(amortised, workdir=tmp_path / "again", checkpoint=amortised.artefact, cores=further.workdir))
    again = load_generator(tmp_path / "again" / "generator").manifest
    assert again.made_by["started_from"]["digest"] == load_generator(amortised.artefact).manifest.digest


def test_more_wordings_are_learnt_and_listed_but_not_indexed(amortised: amortise.Config, tmp_path: Path) -> None:
    wordings = tmp_path / "wordings.json"
    wordings.write_text(json.dumps({"first": ["only what comes before the blank"]}), encoding="utf-8")
    amortise.run(replace(amortised, wordings=wordings))
    before, after = load_generator(amortised.checkpoint), load_generator(amortised.artefact)
    for old, new in zip(before.manifest.tasks, after.manifest.tasks, strict=True):
        more = ("only what comes before the blank",) if new.task_id == "first" else ()
        assert new.descriptions == old.descriptions + more
    torch.testing.assert_close(after.prompt_index.task, before.prompt_index.task)


def test_a_task_that_the_generator_did_not_know_is_listed_with_its_prompts(
    amortised: amortise.Config, tmp_path: Path
) -> None:
    more = shutil.copytree(amortised.tasks, tmp_path / "more")
    first = load_task(more / "first.json")
    save_task(more, replace(first, task_id="new", descriptions=tuple(f"{text} Please." for text in first.descriptions)))
    amortise.run(replace(amortised, tasks=more))
    before, after = load_generator(amortised.checkpoint), load_generator(amortised.artefact)
    assert [task.task_id for task in after.manifest.tasks] == [*(t.task_id for t in before.manifest.tasks), "new"]
    assert after.manifest.tasks[-1].licence == first.licence
    of_new = after.prompt_index.blocks(len(after.manifest.tasks))[-1]
    assert len(of_new) == len(after.manifest.tasks[-1].descriptions)


def test_a_fit_to_cores_that_was_stopped_goes_on_to_the_same(amortised: amortise.Config, tmp_path: Path) -> None:
    def settings(workdir: str, steps: int) -> amortise.Config:
        training = replace(amortised.training, steps=steps, decay_fraction=0)
        return replace(amortised, workdir=tmp_path / workdir, training=training)

    amortise.run(settings("whole", 6))
    amortise.run(settings("halves", 3))
    amortise.run(settings("halves", 6))
    whole, halves = (load_generator(settings(name, 6).artefact).generator for name in ("whole", "halves"))
    for one, other in zip(whole.parameters(), halves.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_what_is_done_is_not_measured_again(amortised: amortise.Config, monkeypatch: pytest.MonkeyPatch) -> None:
    amortise.run(amortised)
    digest = load_generator(amortised.artefact).manifest.digest
    with monkeypatch.context() as without:
        without.delattr(amortise, "distances")
        amortise.run(amortised)
        with pytest.raises(NameError, match="distances"):
            amortise.run(replace(amortised, training=replace(amortised.training, steps=41)))
    shutil.rmtree(amortised.artefact)
    amortise.run(amortised)
    assert load_generator(amortised.artefact).manifest.digest == digest


def test_what_is_done_leaves_its_artefact_calibrated(amortised: amortise.Config) -> None:
    amortise.run(amortised)
    calibrated = calibrate_artefact(amortised.artefact)
    amortise.run(amortised)
    assert load_generator(amortised.artefact).manifest == calibrated


def test_targets_are_searched_once(amortised: amortise.Config, monkeypatch: pytest.MonkeyPatch) -> None:
    amortise.run(amortised)
    monkeypatch.delattr(amortise, "base_of")
    amortise.run(replace(amortised, training=replace(amortised.training, steps=41)))
    (amortised.workdir / amortise.TARGETS_FILE).write_bytes(b"torn")
    with pytest.raises(CheckpointError, match="no readable targets"):
        amortise.run(replace(amortised, training=replace(amortised.training, steps=42)))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda c: replace(c, conditions=replace(c.conditions, noise=0.3)), r"conditions\.noise 0 instead of 0\.3"),
        (lambda c: replace(c, task_ids=IDS), r"tasks_digest \w+ instead of \w+"),
        (lambda c: replace(c, cores=c.cores.with_name("others")), r"cores_digest \w+ instead of \w+"),
    ],
)
def test_a_workdir_of_another_fit_to_cores_is_refused(
    amortised: amortise.Config, change: Callable[[amortise.Config], amortise.Config], named: str
) -> None:
    amortise.run(amortised)
    others = amortised.cores.with_name("others")
    others.mkdir()
    shutil.copy(cores.core_file(amortised.cores, "first"), others)
    state = (amortised.workdir / amortise.STATE_FILE).read_bytes()
    with pytest.raises(ConfigError, match=rf"other settings \({named}\); use them again or another workdir"):
        amortise.run(change(amortised))
    assert (amortised.workdir / amortise.STATE_FILE).read_bytes() == state


def test_the_table_shows_what_the_bases_are_worth_without_the_trunk(amortised: amortise.Config, tmp_path: Path) -> None:
    output = tmp_path / "quality.json"
    methods = ("generated", "cores trained on the task")
    config = evaluate.Config(
        workdir=tmp_path / "evaluate", output=output, checkpoint=amortised.checkpoint, tasks=amortised.tasks,
        cores=amortised.cores, task_ids=("next", "parity"), heldout=None, methods=methods, num_rows=2,
        base=amortised.base,
    )  # fmt: skip
    evaluate.run(config)
    rows = read_result(output)["columns"]["unseen_descriptions"]["methods"]
    assert rows["generated"]["num_tasks"] == 2
    assert rows["cores trained on the task"]["num_tasks"] == 1  # parity has none


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"training": TrainingConfig(shared_rate=0.3)}, "are frozen"),
        ({"synthetic_tasks": 3}, "set synthetic_tasks and synthetic_groups"),
        ({"groups": 0}, "groups must be at least 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        amortise.Config(**changes)  # type: ignore[arg-type]


def test_a_fit_without_cores_says_what_to_run(amortised: amortise.Config, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no cores of these tasks; run the command cores"):
        amortise.run(replace(amortised, cores=tmp_path))
