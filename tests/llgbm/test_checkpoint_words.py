"""The scorer of answer words in a generator's artefact."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from llgbm.checkpoint import (
    MANIFEST_FILE,
    WEIGHTS_FILE,
    GeneratorManifest,
    load_generator,
    save_generator,
    saved_in,
)
from llgbm.conditioning.answer_words import WordScorer
from llgbm.errors import CheckpointError
from llgbm.generator import LoRAGenerator
from llgbm.text_encoder import MemoryEmbeddingCache, PretrainedTextEncoder
from tests.llgbm.test_checkpoint import embeddings_of, manifest_of
from tests.small_generator import WORDY, active_generator, calibrate_artefact, word_scorer, wordy_conditions

TEXTS = ["Say billing or delivery."]


def saved(folder: Path, generator: LoRAGenerator, scorer: WordScorer | None) -> GeneratorManifest:
    manifest = manifest_of(generator)
    return save_generator(folder, generator, manifest, embeddings_of(manifest), word_scorer=scorer)


def rewritten(folder: Path, tensors: dict[str, Tensor], *, answer_words: bool) -> None:
    """Replace the tensors, with the right digest."""
    data = save(tensors)
    (folder / WEIGHTS_FILE).write_bytes(data)
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    manifest["generator"]["answer_words"] = answer_words
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest | {"digest": hashlib.sha256(data).hexdigest()}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    saved(tmp_path / "wordy", active_generator(config=WORDY), word_scorer())
    return tmp_path / "wordy"


def test_an_artefact_keeps_the_scorer_and_the_parameters(folder: Path) -> None:
    checkpoint, generator = load_generator(folder), active_generator(config=WORDY)
    assert checkpoint.word_scorer is not None
    assert checkpoint.word_scorer.digest == word_scorer().digest
    assert checkpoint.manifest.generator == WORDY
    torch.testing.assert_close(checkpoint.generator.word_rows, generator.word_rows, atol=1e-3, rtol=1e-3)
    condition = wordy_conditions(2)
    for before, after in zip(generator(condition), checkpoint.generator(condition), strict=True):
        for name in before.spec.names:
            product = before.delta_weight(name)
            assert (after.delta_weight(name) - product).norm() < 0.02 * product.norm(), name


def test_a_scorer_of_the_artefact_reads_as_the_one_that_was_saved(
    folder: Path, encoder: PretrainedTextEncoder, tiny_encoder_path: Path, tiny_base_path: Path
) -> None:
    checkpoint, cache = load_generator(folder), MemoryEmbeddingCache()
    words = checkpoint.answer_words(encoder, tiny_base_path)
    caching = checkpoint.answer_words(PretrainedTextEncoder(tiny_encoder_path, cache=cache), tiny_base_path)
    named = replace(checkpoint, manifest=replace(checkpoint.manifest, base_id=str(tiny_base_path)))
    by_name = named.answer_words(encoder)
    assert words is not None
    assert caching is not None
    assert by_name is not None
    rows = words.encode(TEXTS)
    assert bool(rows.any())
    assert torch.equal(caching.encode(TEXTS), rows)
    assert torch.equal(by_name.encode(TEXTS), rows)
    assert len(cache) == 1


def test_an_artefact_without_a_scorer_reads_no_words(tmp_path: Path, encoder: PretrainedTextEncoder) -> None:
    saved(tmp_path, active_generator(), None)
    checkpoint = load_generator(tmp_path)
    assert checkpoint.word_scorer is None
    assert checkpoint.answer_words(encoder, tmp_path / "no base is needed") is None


def test_a_manifest_from_before_answer_words_has_none(tmp_path: Path) -> None:
    manifest = saved(tmp_path, active_generator(), None)
    data = json.loads((tmp_path / MANIFEST_FILE).read_text())
    assert data["generator"].pop("answer_words") is False
    (tmp_path / MANIFEST_FILE).write_text(json.dumps(data))
    assert load_generator(tmp_path).manifest == manifest


def test_a_generator_and_its_scorer_are_saved_together(tmp_path: Path) -> None:
    for config, scorer in ((WORDY, None), (replace(WORDY, answer_words=False), word_scorer())):
        with pytest.raises(CheckpointError, match="is saved with their scorer, any other without"):
            saved(tmp_path / "refused", active_generator(config=config), scorer)
    assert not (tmp_path / "refused").exists()


def test_a_scorer_that_is_missing_or_too_much_is_refused(folder: Path, tmp_path: Path) -> None:
    tensors = load((folder / WEIGHTS_FILE).read_bytes())
    without = {name: tensor for name, tensor in tensors.items() if not name.startswith("answer_words.")}
    assert len(tensors) - len(without) == 7
    rewritten(folder, without, answer_words=True)
    with pytest.raises(CheckpointError, match="has a scorer of answer words, or lacks one, against its manifest"):
        load_generator(folder)
    plain = {name: tensor for name, tensor in tensors.items() if not name.startswith("word_")}
    rewritten(folder, plain, answer_words=False)
    with pytest.raises(CheckpointError, match="has a scorer of answer words, or lacks one, against its manifest"):
        load_generator(folder)


def test_half_a_scorer_is_refused(folder: Path) -> None:
    tensors = load((folder / WEIGHTS_FILE).read_bytes())
    del tensors["answer_words.w1"]
    rewritten(folder, tensors, answer_words=True)
    with pytest.raises(CheckpointError, match=r"a scorer of answer words has .*w1"):
        load_generator(folder)


def test_the_digest_covers_the_scorer(folder: Path, tmp_path: Path) -> None:
    there, generator = load_generator(folder), active_generator(config=WORDY)
    other = saved(tmp_path / "other", generator, word_scorer(seed=1))
    again = saved(tmp_path / "again", generator, word_scorer())
    assert again.digest == there.manifest.digest != other.digest
    assert saved_in(folder, generator, there.manifest, word_scorer=word_scorer()) == there.manifest
    assert saved_in(folder, generator, there.manifest, word_scorer=word_scorer(seed=1)) is None
    assert saved_in(folder, generator, there.manifest) is None


def test_a_calibration_keeps_the_scorer(folder: Path) -> None:
    calibrate_artefact(folder)
    checkpoint = load_generator(folder)
    assert checkpoint.detector is not None
    assert checkpoint.word_scorer is not None
    assert checkpoint.word_scorer.digest == word_scorer().digest
