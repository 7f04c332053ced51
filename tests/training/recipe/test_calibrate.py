from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llgbm.checkpoint import load_generator
from llgbm.conditioning.context_choice import ContextChoice
from llgbm.config import GeneratorConfig
from llgbm.errors import ConfigError
from llgbm.prompting import AdapterMaker, AdapterRequest
from llgbm.training import TrainingConfig
from training.recipe import calibrate, fit
from training.recipe.progress_check import CheckConfig
from training.recipe.sampler import SamplerConfig
from training.report import report
from training.runs.results import read_results
from training.tasks.format import load_tasks
from training.tasks.procedural_tasks import FAMILIES


@pytest.fixture
def config(tmp_path: Path, tasks_folder: Path, tiny_base_path: Path, tiny_encoder_path: Path) -> calibrate.Config:
    """A generator of two steps that saw procedural tasks of all families but one."""
    fitted = fit.Config(
        workdir=tmp_path / "fit", tasks=tasks_folder, synthetic_tasks=4, hidden_families=("votes",),
        base=str(tiny_base_path), text_encoder=str(tiny_encoder_path),
        generator=GeneratorConfig(hidden_size=32, basis_rank=8, num_blocks=1),
        sampler=SamplerConfig(groups=3, synthetic_groups=1, max_row_tokens=400),
        training=TrainingConfig(steps=2, warmup_steps=1), check=CheckConfig(every=2, num_tasks=2, num_rows=1),
    )  # fmt: skip
    fit.run(fitted)
    return calibrate.Config(
        workdir=tmp_path / "calibrate", checkpoint=tmp_path / "fit" / "generator", tasks=tasks_folder,
        hidden_families=("votes",), hidden_tasks=2, num_rows=1, skip_rows=0, base=str(tiny_base_path),
        context_tasks=2, context_scales=(0.0, 0.5, 1.0), context_bins=2,
    )  # fmt: skip


def test_a_calibrated_generator_tells_its_confidence(config: calibrate.Config) -> None:
    before = load_generator(config.checkpoint).manifest
    assert not before.confidence
    calibrate.run(config)
    checkpoint = load_generator(config.checkpoint)
    result = read_results(config.workdir)["confidence"]
    assert result["generator"] == checkpoint.manifest.digest != before.digest
    assert set(result["detector"]) == {"training tasks, unseen wordings", "kinds kept back", "gibberish"}
    assert checkpoint.manifest.confidence == result["curve"]
    assert checkpoint.manifest.context_choice == ContextChoice.from_dict(result["context_choice"])
    scales = {"none": {"1"}, "description": {"0", "0.5", "1"}, "examples": {"0", "0.5", "1"}}
    for name, contexts in (("without_examples", list(scales)[:2]), ("with_examples", list(scales))):
        groups = result["accuracy_in_context"][name]
        assert {group: row["n"] for group, row in groups.items()} == {
            "training tasks, unseen wordings": 2, "kinds kept back": 2,
        }  # fmt: skip
        for row in groups.values():
            assert {context: set(found) for context, found in row["accuracy"].items()} == {
                context: scales[context] for context in contexts
            }
    categories = {category for category, _, _ in result["points"]}
    assert {"case", "synthetic_votes"} <= categories
    maker = AdapterMaker(checkpoint, checkpoint.text_encoder())
    (made,) = maker.make([AdapterRequest(("Say it in capitals.",))])
    assert made.confidence is not None
    assert made.scale_in_context in (0.0, 0.5, 1.0)
    chosen = maker.context_setting(made.request)
    assert chosen.accuracy is not None
    assert (made.warning is not None) == (chosen.accuracy < config.threshold)
    report.run(report.Config(workdir=config.workdir))
    assert "<h2>Confidence</h2>" in (config.workdir / "report" / "report.html").read_text()


def test_a_wording_that_another_task_was_trained_on_is_no_point(config: calibrate.Config) -> None:
    manifest = load_generator(config.checkpoint).manifest
    assert config.tasks is not None
    task = load_tasks(config.tasks)[0]
    another = replace(manifest.tasks[-1], descriptions=(task.unseen_descriptions[0],))
    assert calibrate.never_seen([task], manifest) == {task.task_id: list(task.unseen_descriptions)}
    found = calibrate.never_seen([task], replace(manifest, tasks=(*manifest.tasks[:-1], another)))
    assert found == {task.task_id: list(task.unseen_descriptions[1:])}


def test_a_family_that_was_trained_on_is_refused(config: calibrate.Config) -> None:
    trained = {t.category.removeprefix("synthetic_") for t in load_generator(config.checkpoint).manifest.tasks}
    known = sorted(trained & set(FAMILIES))[0]
    with pytest.raises(ConfigError, match="was trained on synth_"):
        calibrate.run(replace(config, hidden_families=(known,), hidden_tasks=400))


@pytest.mark.parametrize(
    "change",
    [
        {"wordings": 0}, {"skip_rows": -1}, {"context_tasks": 0}, {"threshold": 1.5}, {"context_scales": ()},
        {"context_scales": (0.5, -0.1)}, {"context_bins": 0}, {"num_examples": 0},
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"at least 1|between 0 and 1|from 0 to 1"):
        calibrate.Config(**change)
