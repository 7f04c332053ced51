import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from llgbm.conditioning.embedding_cache import SqliteEmbeddingCache
from llgbm.conditioning.encoder_lora import EncoderLoRA
from llgbm.conditioning.sentence_model import SentenceModel
from llgbm.errors import AdapterFormatError, AdapterMismatchError, ConfigError
from llgbm.pretrained.find import pretrained_revision
from llgbm.pretrained.tiny import build_tiny_encoder
from llgbm.text_encoder import PretrainedTextEncoder
from tests.small_generator import encoder_lora

TEXTS = ["Translate the English word to French.", "a", "Reverse the word.", ""]


def test_vectors_are_those_of_the_weights_plus_b_times_a(tiny_encoder_path: Path) -> None:
    lora = encoder_lora(tiny_encoder_path)
    by_hand = SentenceModel(tiny_encoder_path)
    linears = dict(by_hand._transformer.named_modules())
    assert len(lora.a) == 6  # the Linears of one layer; the pooler is not used
    for name in lora.a:
        linears[name].weight.data = linears[name].weight + lora.b[name].float() @ lora.a[name].float()
    expected = torch.nn.functional.normalize(by_hand(TEXTS), dim=-1)
    vectors = PretrainedTextEncoder(tiny_encoder_path, lora=lora).encode(TEXTS)
    torch.testing.assert_close(vectors, expected, atol=1e-6, rtol=0)
    plain = PretrainedTextEncoder(tiny_encoder_path).encode(TEXTS)
    assert (vectors * plain).sum(1).max() < 0.99


def test_a_change_of_zero_changes_nothing(tiny_encoder_path: Path) -> None:
    lora = encoder_lora(tiny_encoder_path)
    zero = replace(lora, b={name: torch.zeros_like(b) for name, b in lora.b.items()})
    plain = PretrainedTextEncoder(tiny_encoder_path).encode(TEXTS)
    assert torch.equal(PretrainedTextEncoder(tiny_encoder_path, lora=zero).encode(TEXTS), plain)


def test_encoders_with_different_changes_share_a_cache_without_mixing(tiny_encoder_path: Path, tmp_path: Path) -> None:
    changes = (None, encoder_lora(tiny_encoder_path, seed=1), encoder_lora(tiny_encoder_path, seed=2))
    expected = [PretrainedTextEncoder(tiny_encoder_path, lora=lora).encode(TEXTS) for lora in changes]
    cache = SqliteEmbeddingCache(tmp_path / "texts.sqlite")
    for _ in range(2):  # first computed, then read
        for lora, vectors in zip(changes, expected, strict=True):
            encoder = PretrainedTextEncoder(tiny_encoder_path, cache=cache, lora=lora)
            assert torch.equal(encoder.encode(TEXTS), vectors)
            assert len(cache) % len(TEXTS) == 0
    assert len(cache) == 3 * len(TEXTS)
    assert not encoder.loaded
    cache.close()


def test_keys_of_the_plain_encoder_are_those_of_earlier_versions(tiny_encoder_path: Path) -> None:
    """Otherwise every cached vector would be computed once more."""
    plain = PretrainedTextEncoder(tiny_encoder_path)
    content = hashlib.sha256(f"{tiny_encoder_path}\0{pretrained_revision(tiny_encoder_path)}\0l2\0".encode())
    names = ("modules.json", "1_Pooling/config.json", "sentence_bert_config.json")
    for name in (*names, "tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        path = tiny_encoder_path / name
        content.update((path.read_bytes() if path.is_file() else b"") + b"\0")
    assert plain._key("a") == f"llgbm:embedding:{content.hexdigest()[:32]}:{hashlib.sha256(b'a').hexdigest()}"


def test_the_difference_of_two_weights_is_kept_up_to_its_rank() -> None:
    draw = torch.Generator().manual_seed(0)
    before = {"x": torch.randn(12, 8, generator=draw), "y": torch.randn(5, 9, generator=draw)}
    change = {n: torch.randn(w.shape[0], 3, generator=draw) @ torch.randn(3, w.shape[1], generator=draw)
              for n, w in before.items()}  # fmt: skip
    after = {name: weight + change[name] for name, weight in before.items()}
    for rank, error in ((3, 0.01), (2, 0.9)):
        lora = EncoderLoRA.of_difference(before, after, rank)
        for name, expected in change.items():
            assert lora.a[name].dtype == lora.b[name].dtype == torch.bfloat16
            left = expected - lora.b[name].float() @ lora.a[name].float()
            # the best of rank 2 leaves exactly the smallest of the three singular values
            least = torch.linalg.svdvals(expected)[rank] if rank < 3 else torch.tensor(0.0)
            torch.testing.assert_close(left.norm(), least, atol=0.01 * float(expected.norm()), rtol=0)
            assert left.norm() < error * expected.norm()
    for rank in (0, 6):
        with pytest.raises(ConfigError, match="rank must be from 1 to 5"):
            EncoderLoRA.of_difference(before, after, rank)


def test_a_file_reads_back_to_the_same_change(tiny_encoder_path: Path, tmp_path: Path) -> None:
    note = {"encoder": "tiny", "revision": "0" * 16}
    lora = replace(encoder_lora(tiny_encoder_path), tuned_on=note)
    lora.save(tmp_path / "lora.safetensors")
    read = EncoderLoRA.load(tmp_path / "lora.safetensors")
    assert read.tuned_on == note
    assert read.digest == lora.digest
    assert read.tensors().keys() == lora.tensors().keys()
    assert all(torch.equal(tensor, read.tensors()[name]) for name, tensor in lora.tensors().items())
    assert encoder_lora(tiny_encoder_path).digest == lora.digest != encoder_lora(tiny_encoder_path, seed=1).digest
    assert [path.name for path in tmp_path.iterdir()] == ["lora.safetensors"]


def write(**tensors: torch.Tensor) -> Callable[[Path], None]:
    return lambda path: save_file({name.replace("__", "."): t for name, t in tensors.items()}, path)


A, B = torch.ones(2, 4), torch.ones(3, 2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "cannot be read: No such file or directory; name the file of `python -m training encoder`"),
        (lambda path: path.write_bytes(b"PK\x03\x04"), "is not the LoRA of a text encoder"),
        (write(x__weight=A), "x.weight is no factor"),
        (write(x__lora_A__weight=A), "needs both factors"),
        (write(x__lora_A__weight=A, y__lora_B__weight=B), "needs both factors"),
        (write(x__lora_A__weight=A, x__lora_B__weight=B.T.contiguous()), r"A \(2, 4\) and B \(2, 3\) have no product"),
        (write(x__lora_A__weight=A * torch.nan, x__lora_B__weight=B), "not finite"),
        (write(x__lora_A__weight=A.long(), x__lora_B__weight=B), "not finite"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, make: Callable[[Path], None], message: str) -> None:
    make(path := tmp_path / "lora.safetensors")
    with pytest.raises(AdapterFormatError, match=f"lora.safetensors: .*{message}"):
        EncoderLoRA.load(path)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        (
            "encoder.layer.7.output.dense",
            (384, 384),
            r"encoder.layer.7.output.dense of shape \(384, 384\), which is not there",
        ),
        (
            "encoder.layer.0.output.dense",
            (384, 128),
            r"layer.0.output.dense of shape \(384, 128\), which is of shape \(384, 384\)",
        ),
        ("pooler.dense", (384, 384), r"pooler.dense of shape \(384, 384\), which is not there"),
    ],
)
def test_a_change_of_another_encoder_is_refused(
    tiny_encoder_path: Path, name: str, shape: tuple[int, int], message: str
) -> None:
    lora = encoder_lora(tiny_encoder_path)
    a, b = torch.ones(2, shape[1]), torch.ones(shape[0], 2)
    other = EncoderLoRA({**lora.a, name: a}, {**lora.b, name: b})
    model = SentenceModel(tiny_encoder_path)
    before = model(TEXTS)
    with pytest.raises(AdapterMismatchError, match=message):
        other.merge_into(model.linears)
    assert torch.equal(model(TEXTS), before)
    with pytest.raises(AdapterMismatchError, match=message):
        PretrainedTextEncoder(tiny_encoder_path, lora=other).load()


def test_a_change_of_an_encoder_with_other_weights_is_refused(tiny_encoder_path: Path, tmp_path: Path) -> None:
    """Their shapes are equal, so only the note tells them apart; a file without it cannot be checked."""
    other, file = build_tiny_encoder(tmp_path / "other", seed=1), tmp_path / "lora.safetensors"
    plain = encoder_lora(tiny_encoder_path)
    note = {"encoder": str(tiny_encoder_path), "revision": pretrained_revision(tiny_encoder_path)}
    replace(plain, tuned_on=note).save(file)
    PretrainedTextEncoder(tiny_encoder_path, lora=EncoderLoRA.load(file)).load()
    message = f"tuned on {tiny_encoder_path} of revision {note['revision']}, but .* {pretrained_revision(other)};"
    with pytest.raises(AdapterMismatchError, match=message):
        PretrainedTextEncoder(other, lora=EncoderLoRA.load(file)).load()
    plain.save(file)
    PretrainedTextEncoder(other, lora=EncoderLoRA.load(file)).load()


def test_an_encoder_with_more_layers_is_refused(tiny_encoder_path: Path) -> None:
    """Such as MiniLM with 12 layers for a LoRA of 6: the change of a part would be silently wrong."""
    lora, model = encoder_lora(tiny_encoder_path), SentenceModel(tiny_encoder_path)
    before = model(TEXTS)
    larger = {**model.linears, "encoder.layer.1.output.dense": torch.nn.Linear(384, 384)}
    with pytest.raises(AdapterMismatchError, match=r"no factors for the Linear encoder.layer.1.output.dense"):
        lora.merge_into(larger)
    assert torch.equal(model(TEXTS), before)
