"""Fits that start from a generator whose text encoder has another LoRA."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from structlog.testing import capture_logs

from llgbm.checkpoint import GeneratorManifest, load_generator, save_generator
from llgbm.conditioning.encoder_lora import EncoderLoRA, lora_digest
from llgbm.config import GeneratorConfig
from llgbm.errors import AdapterFormatError, AdapterMismatchError, CheckpointError, ConfigError
from llgbm.pretrained.tiny import build_tiny_encoder
from llgbm.text_encoder import PretrainedTextEncoder
from llgbm.training import TrainingConfig
from tests.small_generator import SMALL, active_generator, calibrate_artefact, encoder_lora
from tests.training.recipe.sampler_runs import TASKS
from tests.training.recipe.test_fit import killed_run
from training.cli.config import to_yaml
from training.recipe import export, fit
from training.recipe.progress_check import CheckConfig
from training.recipe.sampler import SamplerConfig
from training.recipe.start import ConditionMap, condition_map, encoder_lora_of, read_through
from training.tasks.procedural_tasks import synthetic_tasks


@pytest.fixture(scope="module")
def lora_file(tiny_encoder_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The LoRA of a tuned encoder."""
    path = tmp_path_factory.mktemp("encoder") / "text_encoder.safetensors"
    encoder_lora(tiny_encoder_path, rank=2).save(path)
    return path


@pytest.fixture
def config(tmp_path: Path, tasks_folder: Path, tiny_base_path: Path, tiny_encoder_path: Path) -> fit.Config:
    """Two steps on six tasks, so that a start is hardly changed."""
    return fit.Config(
        workdir=tmp_path / "fit", tasks=tasks_folder, base=str(tiny_base_path), text_encoder=str(tiny_encoder_path),
        generator=GeneratorConfig(basis_rank=8, hidden_size=16, num_blocks=1), sampler=SamplerConfig(groups=2),
        training=TrainingConfig(steps=2, warmup_steps=1), check=CheckConfig(every=0),
    )  # fmt: skip


def lora_of(config: fit.Config) -> str | None:
    return lora_digest(load_generator(config.artefact).encoder_lora)


def test_a_start_reads_nearly_the_same_through_the_map(encoder: PretrainedTextEncoder, tiny_encoder_path: Path) -> None:
    tuned = PretrainedTextEncoder(tiny_encoder_path, lora=encoder_lora(tiny_encoder_path, rank=2))
    tasks = [*TASKS, *synthetic_tasks(limit=100)]
    mapping = condition_map(tasks, tuned, encoder)
    assert 0.8 < mapping.r2 < 1
    old, through = active_generator(), active_generator()
    read_through(through, mapping)
    texts = [text for task in tasks for text in task.seen_descriptions[:2]]
    plain, changed = encoder.encode(texts), tuned.encode(texts)
    with torch.no_grad():
        for name in old.lora.names[:3]:
            expected, mapped, unmapped = (
                torch.stack([adapter.delta_weight(name) for adapter in generator(conditions)])
                for generator, conditions in ((old, plain), (through, changed), (old, changed))
            )
            assert (mapped - expected).norm() < 0.25 * expected.norm() < 0.5 * (unmapped - expected).norm(), name


def test_the_first_layer_is_composed_with_the_map_exactly() -> None:
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(SMALL.condition_size, SMALL.condition_size, generator=draw, dtype=torch.float64)
    mapping = ConditionMap(weight, torch.randn(SMALL.condition_size, generator=draw, dtype=torch.float64), 1.0)
    generator, through = active_generator(), active_generator()
    read_through(through, mapping)
    condition = torch.randn(3, SMALL.condition_size, generator=draw)
    mapped = (condition.double() @ weight.T + mapping.offset).float()
    torch.testing.assert_close(through.cores(condition)[:2], generator.cores(mapped)[:2], atol=1e-4, rtol=1e-3)


def test_the_map_between_equal_encoders_is_nearly_the_identity(encoder: PretrainedTextEncoder) -> None:
    mapping = condition_map(synthetic_tasks(limit=100), encoder, encoder)
    assert mapping.r2 > 0.95
    texts = list(TASKS[0].seen_descriptions)
    vectors = encoder.encode(texts).double()
    mapped = vectors @ mapping.weight.T + mapping.offset
    assert torch.cosine_similarity(mapped, vectors).min() > 0.95


def test_a_fit_writes_the_change_and_a_fit_from_it_keeps_it(config: fit.Config, lora_file: Path) -> None:
    tuned = replace(config, encoder_lora=lora_file)
    fit.run(tuned)
    digest = EncoderLoRA.load(lora_file).digest
    checkpoint = load_generator(tuned.artefact)
    assert lora_of(tuned) == digest
    first = checkpoint.manifest.tasks[0].descriptions[:1]
    (vector,) = checkpoint.text_encoder().encode(first)
    assert checkpoint.prompt_index.nearest(vector)[0][1] > 0.999  # the index has the tuned vectors
    calibrated = calibrate_artefact(tuned.artefact)
    fit.run(tuned)
    assert load_generator(tuned.artefact).manifest == calibrated
    further = replace(config, workdir=config.workdir.with_name("further"), start=tuned.artefact)
    with capture_logs() as lines:
        fit.run(further)
    assert lora_of(further) == digest
    assert not [line for line in lines if "map" in line["event"]]


def test_a_fit_that_changes_the_encoder_of_its_start_says_how_well_it_maps(
    config: fit.Config, lora_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit.run(config)
    assert lora_of(config) is None
    capsys.readouterr()
    still = replace(config.training, learning_rate=1e-9)
    further = replace(config, workdir=config.workdir.with_name("further"), start=config.artefact, training=still)
    tuned = replace(further, encoder_lora=lora_file)
    fit.run(tuned)
    assert "the first layer reads through the map" in (told := capsys.readouterr().err)
    assert '"r2": 0.' in told
    assert lora_of(tuned) == EncoderLoRA.load(lora_file).digest
    old, new = load_generator(config.artefact).generator, load_generator(tuned.artefact).generator
    assert not torch.allclose(old.read.weight, new.read.weight, atol=1e-3)
    torch.testing.assert_close(old.layer_embedding.weight, new.layer_embedding.weight, atol=1e-3, rtol=0)


def test_a_killed_fit_that_reads_through_a_map_goes_on_to_the_same_artefact(
    config: fit.Config, lora_file: Path
) -> None:
    fit.run(config)
    longer = replace(config.training, steps=4, checkpoint_seconds=-1.0)
    whole = replace(config, workdir=config.workdir.with_name("whole"), start=config.artefact, encoder_lora=lora_file,
                    training=longer)  # fmt: skip
    fit.run(whole)
    killed = replace(whole, workdir=config.workdir.with_name("killed"))
    killed_run(killed, 1)
    killed_run(killed, 3)
    fit.run(killed)
    assert load_generator(killed.artefact).manifest.digest == load_generator(whole.artefact).manifest.digest


def test_a_start_that_read_another_model_is_refused(config: fit.Config, tmp_path: Path) -> None:
    fit.run(config)
    other = build_tiny_encoder(tmp_path / "other", seed=1)
    further = replace(config, workdir=tmp_path / "further", start=config.artefact, text_encoder=str(other))
    with pytest.raises(CheckpointError, match=f"not the one .*; use {config.text_encoder}"):
        fit.run(further)
    assert not further.artefact.exists()


def test_a_state_belongs_to_its_change(config: fit.Config, lora_file: Path, tiny_encoder_path: Path) -> None:
    tuned = replace(config, encoder_lora=lora_file)
    fit.run(tuned)
    other = lora_file.with_name("other.safetensors")
    encoder_lora(tiny_encoder_path, seed=1).save(other)
    for file in (None, other):
        with pytest.raises(ConfigError, match=r"other settings \(encoder_lora_digest \w+ instead of \w+\)"):
            fit.run(replace(tuned, encoder_lora=file))
    moved = lora_file.with_name("moved.safetensors")
    moved.write_bytes(lora_file.read_bytes())
    fit.run(replace(tuned, encoder_lora=moved))


def test_an_exported_generator_is_the_fits_with_its_change(config: fit.Config, lora_file: Path, tmp_path: Path) -> None:
    fit.run(config)
    tuned = replace(config, encoder_lora=lora_file, start=config.artefact, workdir=config.workdir.with_name("tuned"))
    fit.run(tuned)
    (tuned.workdir / "fit.yaml").write_text(to_yaml(tuned))
    out = tmp_path / "exported"
    export.run(export.Config(state=tuned.workdir / "state.pt", fit=(tuned.workdir / "fit.yaml",), out=out))
    assert load_generator(out).manifest.digest == load_generator(tuned.artefact).manifest.digest
    assert load_generator(out).encoder_lora is not None


def test_the_file_wins_over_the_start(
    tiny_checkpoint_path: Path, tiny_encoder_path: Path, lora_file: Path, tmp_path: Path
) -> None:
    plain, lora = load_generator(tiny_checkpoint_path), encoder_lora(tiny_encoder_path, seed=3)
    manifest: GeneratorManifest = replace(plain.manifest, tasks=(), confidence={}, context_choice=None)
    save_generator(tmp_path / "tuned", plain.generator, manifest, [], encoder_lora=lora)
    start = load_generator(tmp_path / "tuned")
    for checkpoint, digest in ((None, None), (plain, None), (start, lora.digest)):
        assert lora_digest(encoder_lora_of(None, checkpoint)) == digest
        assert lora_digest(encoder_lora_of(lora_file, checkpoint)) == EncoderLoRA.load(lora_file).digest


def test_a_fit_refuses_another_file(config: fit.Config, tmp_path: Path) -> None:
    file = tmp_path / "text_encoder.safetensors"
    with pytest.raises(AdapterFormatError, match="name the file of `python -m training encoder`"):
        fit.run(replace(config, encoder_lora=file))
    file.write_bytes(b"not a LoRA")
    with pytest.raises(AdapterFormatError, match="is not the LoRA of a text encoder"):
        fit.run(replace(config, encoder_lora=file))
    EncoderLoRA({"encoder.layer.7.x": torch.ones(1, 2)}, {"encoder.layer.7.x": torch.ones(2, 1)}).save(file)
    with pytest.raises(AdapterMismatchError, match=r"encoder.layer.7.x of shape \(2, 2\), which is not there"):
        fit.run(replace(config, encoder_lora=file))
    other = {"encoder": "another", "revision": "0" * 16}
    replace(encoder_lora(Path(config.text_encoder)), tuned_on=other).save(file)
    with pytest.raises(AdapterMismatchError, match="tuned on another of revision 0000"):
        fit.run(replace(config, encoder_lora=file))
