"""The LoRA of the text encoder in a generator's artefact."""

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from llgbm.checkpoint import MANIFEST_FILE, load_generator, save_generator, saved_in
from llgbm.errors import CheckpointError, ConfigError
from llgbm.prompting import AdapterMaker, AdapterRequest
from llgbm.text_encoder import MemoryEmbeddingCache, PretrainedTextEncoder
from tests.small_generator import calibrate_artefact, encoder_lora

WEIGHTS = "generator.safetensors"
REQUEST = AdapterRequest(("Write the word in capitals.",))


@pytest.fixture
def tuned(tiny_checkpoint_path: Path, tiny_encoder_path: Path, tmp_path: Path) -> Path:
    """The tiny generator with a tuned encoder."""
    plain = load_generator(tiny_checkpoint_path)
    manifest = replace(plain.manifest, tasks=(), confidence={}, context_choice=None)
    lora = encoder_lora(tiny_encoder_path)
    save_generator(tmp_path / "tuned", plain.generator, manifest, [], encoder_lora=lora)
    return tmp_path / "tuned"


def test_an_artefact_keeps_the_change_and_reads_with_it(
    tuned: Path, tiny_checkpoint_path: Path, tiny_encoder_path: Path
) -> None:
    checkpoint, lora = load_generator(tuned), encoder_lora(tiny_encoder_path)
    assert checkpoint.encoder_lora is not None
    assert checkpoint.encoder_lora.digest == lora.digest == checkpoint.text_encoder().lora_digest
    expected = PretrainedTextEncoder(tiny_encoder_path, lora=lora).encode(REQUEST.descriptions)
    cache = MemoryEmbeddingCache()
    assert torch.equal(checkpoint.text_encoder(cache=cache).encode(REQUEST.descriptions), expected)
    assert len(cache) == 1
    (made,) = AdapterMaker(checkpoint, checkpoint.text_encoder()).make([REQUEST])
    (by_hand,) = checkpoint.generator(expected)
    plain = load_generator(tiny_checkpoint_path)
    (other,) = AdapterMaker(plain, plain.text_encoder()).make([REQUEST])
    for name, a in by_hand.a.items():
        torch.testing.assert_close(made.weights.a[name], a)
        assert not torch.allclose(other.weights.a[name], a, atol=1e-4)
    assert made.id != other.id


def test_another_source_of_the_encoder_is_changed_too(tuned: Path, tiny_encoder_path: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_encoder_path, tmp_path / "copy")
    checkpoint = load_generator(tuned)
    there = checkpoint.text_encoder(tmp_path / "copy")
    assert there.encoder_id == str(tmp_path / "copy")
    assert torch.equal(there.encode(["a"]), checkpoint.text_encoder().encode(["a"]))
    assert checkpoint.text_encoder("").encoder_id == checkpoint.manifest.encoder_id


def test_an_artefact_without_a_change_has_the_plain_encoder(tiny_checkpoint_path: Path) -> None:
    checkpoint = load_generator(tiny_checkpoint_path)
    assert checkpoint.encoder_lora is None
    assert checkpoint.text_encoder().lora_digest is None


def test_an_encoder_that_is_tuned_otherwise_is_refused(
    tuned: Path, tiny_checkpoint_path: Path, tiny_encoder_path: Path
) -> None:
    plain = PretrainedTextEncoder(tiny_encoder_path)
    other = PretrainedTextEncoder(tiny_encoder_path, lora=encoder_lora(tiny_encoder_path, seed=1))
    for folder, encoder in ((tuned, plain), (tuned, other), (tiny_checkpoint_path, other)):
        with pytest.raises(ConfigError, match=r"another LoRA .* take checkpoint.text_encoder\(\)"):
            AdapterMaker(load_generator(folder), encoder)


def test_a_calibration_keeps_the_change(tuned: Path, tiny_encoder_path: Path) -> None:
    before = load((tuned / WEIGHTS).read_bytes())
    calibrate_artefact(tuned)
    after, checkpoint = load((tuned / WEIGHTS).read_bytes()), load_generator(tuned)
    assert checkpoint.detector is not None
    assert checkpoint.encoder_lora is not None
    assert checkpoint.encoder_lora.digest == encoder_lora(tiny_encoder_path).digest
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_the_digest_covers_the_change(tuned: Path, tiny_encoder_path: Path, tmp_path: Path) -> None:
    there = load_generator(tuned)
    same, other = encoder_lora(tiny_encoder_path), encoder_lora(tiny_encoder_path, seed=1)
    digests = {
        save_generator(tmp_path / "again", there.generator, there.manifest, [], encoder_lora=lora).digest
        for lora in (None, same, other)
    }
    assert len(digests) == 3
    assert there.manifest.digest in digests
    assert saved_in(tuned, there.generator, there.manifest, encoder_lora=same) == there.manifest
    assert saved_in(tuned, there.generator, there.manifest, encoder_lora=other) is None
    assert saved_in(tuned, there.generator, there.manifest) is None


def test_half_a_change_is_refused(tuned: Path) -> None:
    tensors = load((tuned / WEIGHTS).read_bytes())
    tensors.pop(next(name for name in tensors if name.startswith("text_encoder.")))
    data = save(tensors)
    (tuned / WEIGHTS).write_bytes(data)
    manifest = json.loads((tuned / MANIFEST_FILE).read_text())
    (tuned / MANIFEST_FILE).write_text(json.dumps(manifest | {"digest": hashlib.sha256(data).hexdigest()}))
    with pytest.raises(CheckpointError, match=r"do not fit its manifest: .*needs both factors"):
        load_generator(tuned)


class Changed:
    """An encoder whose vectors are those of another one, changed."""

    def __init__(self, encoder: PretrainedTextEncoder, change: Callable[[Tensor], Tensor]) -> None:
        self._encoder, self._change = encoder, change

    def encode(self, texts: Sequence[str]) -> Tensor:
        return self._change(self._encoder.encode(texts))


def test_vectors_of_the_training_are_required(tiny_checkpoint_path: Path, encoder: PretrainedTextEncoder) -> None:
    checkpoint = load_generator(tiny_checkpoint_path)
    for change in (lambda v: v, lambda v: v + 1e-4):
        AdapterMaker(checkpoint, Changed(encoder, change)).require_training_vectors()
    for change in (lambda v: v.roll(1, -1), lambda v: v[:, :100], lambda v: v * torch.nan):
        with pytest.raises(CheckpointError, match="another vector for a training description; use "):
            AdapterMaker(checkpoint, Changed(encoder, change)).require_training_vectors()


def test_without_indexed_prompts_there_is_nothing_to_compare(tuned: Path) -> None:
    checkpoint = load_generator(tuned)
    encoder = Changed(checkpoint.text_encoder(), lambda v: v * torch.nan)
    AdapterMaker(checkpoint, encoder).require_training_vectors()
