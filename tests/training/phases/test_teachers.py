import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from llgbm.adapters.index import load_index, load_prompts
from llgbm.adapters.peft_io import load_peft
from llgbm.base import Base, load_base
from llgbm.config import GeneratorConfig
from llgbm.errors import AdapterMismatchError, ConfigError
from llgbm.functional import FunctionalLoRA
from llgbm.linears.frozen_linear import Storage
from llgbm.training import TrainingConfig
from tests.training.conftest import small_tasks, teacher_config
from training.adapters.teacher_folder import load_teachers
from training.cli.command_line import Command, main
from training.phases import teachers
from training.recipe import fit
from training.recipe.progress_check import CheckConfig
from training.recipe.sampler import SamplerConfig
from training.runs.artefacts import read_manifest
from training.runs.metrics import read_metrics
from training.tasks.format import load_tasks

TRAINABLE: list[Storage] = ["bfloat16", "int8_training"]
TABLE = (Command("teachers", "", "training.phases.teachers:Config", "training.phases.teachers:run"),)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*.safetensors"))}


@pytest.fixture
def config(tmp_path: Path, tasks_folder: Path, tiny_base_path: Path) -> teachers.Config:
    return replace(teacher_config(tmp_path / "work", tasks_folder, tiny_base_path), steps=2)


def test_the_layout_is_the_documented_one(trained_workdir: Path) -> None:
    for task in small_tasks():
        folder = trained_workdir / task.task_id / f"{task.task_id}_000"
        assert {p.name for p in folder.iterdir()} == {
            "adapter_config.json",
            "adapter_model.safetensors",
            "prompts.json",
        }
        prompts = load_prompts(folder)
        assert prompts.descriptions == task.seen_descriptions
        assert set(prompts.examples) <= {(e.input, e.output) for e in task.train}
    listed = {entry.adapter_id: entry.task for entry in load_index(trained_workdir)}
    assert listed == {f"{t.task_id}_000": t.task_id for t in small_tasks()}


def test_what_made_a_teacher_is_recorded(trained_workdir: Path, tiny_base: Base) -> None:
    artefact = read_manifest(trained_workdir)["upper/upper_000"]
    assert (artefact.command, artefact.kind, artefact.config["steps"]) == ("teachers", "adapter", 6)
    assert artefact.base_revision == tiny_base.revision
    losses = [line["loss"] for line in read_metrics(trained_workdir / "metrics" / "teachers.upper_000.jsonl")]
    assert len(losses) == 6
    assert losses[-1] < losses[0]


def test_peft_and_the_hooks_give_the_same_numbers(trained_workdir: Path, tiny_base_path: Path, tiny_base: Base) -> None:
    folder = trained_workdir / "upper" / "upper_000"
    weights, base_id = load_peft(folder)
    assert base_id == tiny_base.spec.base_id
    ids = torch.tensor([tiny_base.tokenizer("cat and dog")["input_ids"]])
    plain = AutoModelForCausalLM.from_pretrained(tiny_base_path, dtype=torch.float32).eval()
    with torch.inference_mode():
        unchanged = plain(ids).logits
        theirs = PeftModel.from_pretrained(plain, str(folder)).eval()(ids).logits
        with FunctionalLoRA(tiny_base.model).applied(weights):
            ours = tiny_base.model(ids).logits
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert (ours - unchanged).abs().max() > 0.1


def test_the_base_is_as_before_after_training(
    config: teachers.Config, tasks_folder: Path, tiny_base_path: Path
) -> None:
    base = load_base(tiny_base_path)
    ids = torch.tensor([base.tokenizer("cat")["input_ids"]])
    before, names = base.model(ids).logits, list(dict(base.model.named_modules()))
    teachers.train_teacher(base, load_tasks(tasks_folder)[0], config, None)
    assert torch.equal(base.model(ids).logits, before)
    assert list(dict(base.model.named_modules())) == names
    assert not base.model.training
    assert not any(p.requires_grad for p in base.model.parameters())


def test_a_stopped_run_goes_on_to_the_same_teachers(config: teachers.Config) -> None:
    teachers.run(config)
    whole = contents(config.workdir)
    other = replace(config, workdir=config.workdir.with_name("other"))
    teachers.run(replace(other, tasks=("title", "next")))
    stamps = {p: p.stat().st_mtime_ns for p in other.workdir.rglob("*.safetensors")}
    assert len(stamps) == 2
    teachers.run(other)
    assert contents(other.workdir) == whole
    assert all(p.stat().st_mtime_ns == stamp for p, stamp in stamps.items())
    assert len(load_index(other.workdir)) == len(small_tasks())


def test_a_teacher_without_prompts_or_index_is_listed_not_trained_again(
    workdir: Path, tasks_folder: Path, tiny_base_path: Path
) -> None:
    (workdir / "manifest.json").unlink()
    (workdir / "upper" / "upper_000" / "prompts.json").unlink()
    before = contents(workdir)
    teachers.run(teacher_config(workdir, tasks_folder, tiny_base_path))
    assert contents(workdir) == before
    assert len(load_index(workdir)) == len(small_tasks())
    assert load_prompts(workdir / "upper" / "upper_000").descriptions


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: replace(c, steps=7), "steps 6 instead of 7"),
        (lambda c: replace(c, learning_rate=1.0), "learning_rate 0.01 instead of 1.0"),
    ],
)
def test_a_teacher_of_other_settings_is_not_taken_for_this_one(
    change: Callable[[teachers.Config], teachers.Config],
    message: str,
    trained_workdir: Path,
    tasks_folder: Path,
    tiny_base_path: Path,
) -> None:
    with pytest.raises(ConfigError, match=message):
        teachers.run(change(teacher_config(trained_workdir, tasks_folder, tiny_base_path)))


def test_a_teacher_of_another_base_is_not_loaded_for_this_one(workdir: Path) -> None:
    with pytest.raises(AdapterMismatchError, match=r"upper_000 was made for .*, not for someone/else"):
        load_teachers(workdir, ["upper"], "someone/else")


def test_a_teacher_of_another_start_is_not_taken_for_this_one(config: teachers.Config, tiny_encoder_path: Path) -> None:
    def started(seed: int) -> teachers.Config:
        fitted = fit.Config(
            workdir=config.workdir / f"fit-{seed}", tasks=config.folder, base=config.base,
            text_encoder=str(tiny_encoder_path), check=CheckConfig(every=0), sampler=SamplerConfig(groups=2),
            generator=GeneratorConfig(basis_rank=8, hidden_size=16, num_blocks=1),
            training=TrainingConfig(steps=1, warmup_steps=1, seed=seed),
        )  # fmt: skip
        fit.run(fitted)
        return replace(config, tasks=("upper",), start=fitted.artefact)

    first, second = started(0), started(1)
    teachers.run(first)
    teachers.run(first)
    assert first.start
    assert second.start
    shutil.rmtree(first.start)
    second.start.rename(first.start)
    with pytest.raises(ConfigError, match=r"start_digest \w+ instead of \w+"):
        teachers.run(first)


def test_a_second_teacher_of_a_task_gets_its_own_folder_and_other_rows(config: teachers.Config) -> None:
    teachers.run(replace(config, tasks=("upper",)))
    teachers.run(replace(config, tasks=("upper",), index=1))
    assert [e.adapter_id for e in load_index(config.workdir)] == ["upper_000", "upper_001"]
    first, second = contents(config.workdir).values()
    assert first != second


@pytest.mark.parametrize("storage", TRAINABLE)
def test_teachers_learn_the_same_on_a_base_that_is_stored_in_fewer_bits(
    config: teachers.Config, tasks_folder: Path, tiny_base_path: Path, storage: Storage
) -> None:
    task, longer = load_tasks(tasks_folder)[0], replace(config, steps=6)
    _, expected = teachers.train_teacher(load_base(tiny_base_path), task, longer, None)
    _, losses = teachers.train_teacher(load_base(tiny_base_path, storage=storage), task, longer, None)
    assert losses[-1] < losses[0]
    assert losses == pytest.approx(expected, rel=0.02)


def test_rows_that_are_all_too_long_are_refused(config: teachers.Config) -> None:
    with pytest.raises(ConfigError, match="has no row of at most 5 tokens; raise max_row_tokens"):
        teachers.run(replace(config, tasks=("upper",), max_row_tokens=5))


def test_the_command_line_of_the_readme(
    config: teachers.Config, tiny_base: Base, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["teachers", "tasks=[upper, next]", "lora_rank=2", "steps=1"]
    paths = [f"workdir={config.workdir}", f"folder={config.folder}", f"base={config.base}"]
    assert main(TABLE, [*words, *paths], program="training") == 0
    trained = load_teachers(config.workdir, ["upper", "next", "title"], tiny_base.spec.base_id)
    assert {name: w.spec.rank for name, w in trained.items()} == {"upper": 2, "next": 2}
    assert main(TABLE, ["teachers", "tasks=[uper]", *paths], program="training") == 2
    assert "no task 'uper'; did you mean upper?" in capsys.readouterr().err
