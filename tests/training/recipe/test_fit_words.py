"""Fits of generators that read answer words."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from llgbm.base import Base
from llgbm.checkpoint import load_generator
from llgbm.conditioning.answer_words import AnswerWords, scorer_digest
from llgbm.conditioning.vocabulary import BaseVocabulary
from llgbm.config import GeneratorConfig
from llgbm.errors import CheckpointError, ConfigError
from llgbm.fitting.task_losses import label_logits
from llgbm.functional import FunctionalLoRA
from llgbm.generator import create_generator
from llgbm.packed.batch import pack
from llgbm.prompting import AdapterMaker, AdapterRequest
from llgbm.text_encoder import PretrainedTextEncoder
from llgbm.training import TrainingConfig
from tests.small_generator import SPEC, TINY, WORDY, active_generator, word_scorer
from tests.training.recipe.sampler_runs import CONFIG, TASKS
from tests.training.recipe.test_fit import killed_run
from training.cli.config import to_yaml
from training.recipe import export, fit
from training.recipe.answer_words import save_scorer
from training.recipe.progress_check import CheckConfig
from training.recipe.sampler import SamplerConfig, TaskSampler
from training.recipe.start import begin_word_rows, take_parameters, word_scorer_of


@pytest.fixture(scope="module")
def scorer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("words") / "answer_words.safetensors"
    save_scorer(path, word_scorer(), None)
    return path


@pytest.fixture
def plain(tmp_path: Path, tasks_folder: Path, tiny_base_path: Path, tiny_encoder_path: Path) -> fit.Config:
    """Two steps on six tasks, without answer words."""
    return fit.Config(
        workdir=tmp_path / "plain", tasks=tasks_folder, base=str(tiny_base_path), text_encoder=str(tiny_encoder_path),
        generator=GeneratorConfig(basis_rank=8, hidden_size=16, num_blocks=1), sampler=SamplerConfig(groups=2),
        training=TrainingConfig(steps=2, warmup_steps=1), check=CheckConfig(every=2, num_tasks=2, num_rows=1),
    )  # fmt: skip


@pytest.fixture
def config(plain: fit.Config, scorer_file: Path) -> fit.Config:
    """The same with answer words."""
    generator = replace(plain.generator, answer_words=True)
    return replace(plain, workdir=plain.workdir.with_name("wordy"), generator=generator, answer_words=scorer_file)


def digest_of(config: fit.Config) -> str:
    return load_generator(config.artefact).manifest.digest


def last_inputs(base: Base, sampler: TaskSampler, step: int) -> tuple[Tensor, Tensor]:
    """Of a batch, the inputs (labels, in) of the last down_proj, and whether an answer begins there (labels,)."""
    packed = pack([group.rows for group in sampler(step)])
    kept: list[Tensor] = []
    module = base.model.get_submodule(f"model.layers.{base.spec.num_layers - 1}.mlp.down_proj")
    hook = module.register_forward_pre_hook(lambda _, given: kept.append(given[0].flatten(0, -2)))
    try:
        with torch.no_grad():
            label_logits(base, FunctionalLoRA(base.model), packed, [None] * len(packed.lengths))
    finally:
        hook.remove()
    begins = torch.tensor([True, *(packed.label_row.diff() != 0).tolist()])
    return kept[0][packed.label_index], begins


def test_the_first_row_reads_where_an_answer_begins_and_the_second_where_it_goes_on(
    tiny_base: Base, tiny_base_path: Path, encoder: PretrainedTextEncoder
) -> None:
    words = AnswerWords(word_scorer(), encoder, BaseVocabulary(tiny_base_path))
    sampler = TaskSampler(TASKS, tiny_base, encoder, CONFIG, 0, words=words)
    generator = create_generator(TINY, SPEC, WORDY)
    before = {name: tensor.clone() for name, tensor in generator.state_dict().items()}
    begin_word_rows(generator, tiny_base, sampler)
    changed = {name for name, tensor in generator.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"word_rows"}
    x, begins = last_inputs(tiny_base, sampler, 50)
    read = x @ generator.word_rows.detach().T  # (labels, slots)
    assert 3 < int(begins.sum()) < len(begins) - 3
    assert read[begins, 0].mean() > 3 * read[~begins, 0].abs().mean()
    assert read[~begins, 1].mean() > 2 * read[begins, 1].abs().mean()


def test_the_base_keeps_no_hooks_of_the_beginning(
    tiny_base: Base, tiny_base_path: Path, encoder: PretrainedTextEncoder
) -> None:
    words = AnswerWords(word_scorer(), encoder, BaseVocabulary(tiny_base_path))
    begin_word_rows(
        active_generator(config=WORDY), tiny_base, TaskSampler(TASKS, tiny_base, encoder, CONFIG, 0, words=words)
    )
    assert not any(module._forward_pre_hooks for module in tiny_base.model.modules())


def test_a_fit_from_a_start_without_words_keeps_its_parameters(plain: fit.Config, config: fit.Config) -> None:
    fit.run(plain)
    still = replace(config, start=plain.artefact, training=replace(config.training, learning_rate=1e-9))
    fit.run(still)
    old, new = load_generator(plain.artefact), load_generator(still.artefact)
    assert new.word_scorer is not None
    assert new.word_scorer.digest == word_scorer().digest
    own = new.generator.state_dict()
    for name, tensor in old.generator.state_dict().items():
        torch.testing.assert_close(own[name], tensor, atol=2e-3, rtol=0, msg=name)
    assert own.keys() - old.generator.state_dict().keys() == {"word_rows", "word_gain.weight", "word_gain.bias"}
    assert bool(own["word_rows"].any(1).all())
    maker = AdapterMaker(new, new.text_encoder(), base=config.base)
    (made,) = maker.make([AdapterRequest(("Say billing or delivery.",))])
    assert bool(made.weights.b["model.layers.1.mlp.down_proj"][:, -2:].any())


def test_a_fit_from_a_start_with_words_keeps_scorer_and_rows(config: fit.Config, scorer_file: Path) -> None:
    fit.run(config)
    training = replace(config.training, learning_rate=1e-9)
    further = replace(config, workdir=config.workdir.with_name("further"), start=config.artefact, answer_words=None,
                      training=training)  # fmt: skip
    fit.run(further)
    old, new = load_generator(config.artefact), load_generator(further.artefact)
    assert scorer_digest(new.word_scorer) == word_scorer().digest
    torch.testing.assert_close(new.generator.word_rows, old.generator.word_rows, atol=1e-3, rtol=1e-3)
    other = scorer_file.with_name("other.safetensors")
    save_scorer(other, word_scorer(seed=1), None)
    for file, start, seed in ((None, None, None), (None, old, 0), (other, old, 1), (other, None, 1)):
        expected = None if seed is None else word_scorer(seed=seed).digest
        assert scorer_digest(word_scorer_of(file, start, None)) == expected


def test_a_killed_fit_with_answer_words_goes_on_to_the_same_artefact(plain: fit.Config, config: fit.Config) -> None:
    fit.run(plain)
    longer = replace(config.training, steps=4, checkpoint_seconds=-1.0)
    whole = replace(config, workdir=config.workdir.with_name("whole"), start=plain.artefact, training=longer)
    fit.run(whole)
    killed = replace(whole, workdir=config.workdir.with_name("killed"))
    killed_run(killed, 3)
    fit.run(killed)
    assert digest_of(killed) == digest_of(whole)
    fit.run(killed)
    assert digest_of(killed) == digest_of(whole)


def test_a_state_belongs_to_its_scorer(config: fit.Config, scorer_file: Path) -> None:
    fit.run(config)
    other = scorer_file.with_name("another.safetensors")
    save_scorer(other, word_scorer(seed=1), None)
    with pytest.raises(ConfigError, match=r"other settings \(word_scorer_digest \w+ instead of \w+\)"):
        fit.run(replace(config, answer_words=other))
    moved = scorer_file.with_name("moved.safetensors")
    moved.write_bytes(scorer_file.read_bytes())
    fit.run(replace(config, answer_words=moved))


def test_an_exported_generator_is_the_fits_with_its_scorer(config: fit.Config, tmp_path: Path) -> None:
    fit.run(config)
    (config.workdir / "fit.yaml").write_text(to_yaml(config))
    out = tmp_path / "exported"
    export.run(export.Config(state=config.workdir / "state.pt", fit=(config.workdir / "fit.yaml",), out=out))
    assert load_generator(out).manifest.digest == digest_of(config)
    assert scorer_digest(load_generator(out).word_scorer) == word_scorer().digest


def test_the_flag_and_the_scorer_go_together(plain: fit.Config, config: fit.Config, scorer_file: Path) -> None:
    for wrong in (replace(config, answer_words=None), replace(plain, answer_words=scorer_file)):
        with pytest.raises(
            ConfigError, match=r"generator.answer_words goes with answer_words, a file, or with a start"
        ):
            fit.run(wrong)
        assert not wrong.artefact.exists()
    with pytest.raises(CheckpointError, match="name the file of `python -m training words`"):
        fit.run(replace(config, answer_words=scorer_file.with_name("missing")))


def test_a_scorer_for_another_base_is_refused(config: fit.Config, tmp_path: Path) -> None:
    path = tmp_path / "large.safetensors"
    save_scorer(path, replace(word_scorer(), metric=torch.eye(896)), None)
    with pytest.raises(ConfigError, match="a base of hidden size 896, not for 384 and 64"):
        fit.run(replace(config, answer_words=path))


def test_a_generator_without_answer_words_is_not_started_from_one_with_them(config: fit.Config) -> None:
    fit.run(config)
    start = load_generator(config.artefact)
    size = replace(config.generator, answer_words=False)
    with pytest.raises(ConfigError, match="has another base, LoRASpec or size"):
        take_parameters(create_generator(start.generator.model, start.generator.lora, size), start)
