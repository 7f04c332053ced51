import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from torch import Tensor

from llgbm.conditioning.embedding_cache import MemoryEmbeddingCache
from llgbm.conditioning.sentence_model import SentenceModel, TokenStates
from llgbm.errors import PretrainedNotFoundError
from llgbm.pretrained.tiny import build_tiny_encoder
from llgbm.text_encoder import PretrainedTextEncoder
from tests.fixtures import in_threads

TEXTS = [
    "Translate the English word to French.",
    "a",
    "",
    "Classify " * 400,
    "Ordne den Satz einer Kategorie zu. \N{ROCKET}",
    "Reverse the word.",
]


class CountingCache(MemoryEmbeddingCache):
    """Counts reads and writes."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.told = 0, 0

    def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        self.asked += len(keys)
        return super().get_many(keys)

    def set_many(self, items: Mapping[str, bytes]) -> None:
        self.told += len(items)
        super().set_many(items)

    @property
    def keys(self) -> list[str]:
        return list(self._items)


def check_encoder(encoder: PretrainedTextEncoder, path: Path) -> None:
    vectors = encoder.encode(TEXTS)
    assert vectors.shape == (len(TEXTS), encoder.dim) == (len(TEXTS), 384)
    assert vectors.dtype == torch.float32
    assert not vectors.requires_grad
    assert not vectors.is_inference()
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(TEXTS)), atol=1e-6, rtol=0)
    for text, vector in zip(TEXTS, vectors, strict=True):
        torch.testing.assert_close(encoder.encode([text])[0], vector, atol=1e-6, rtol=0)
    plain = SentenceTransformer(str(path), device="cpu").encode(TEXTS, convert_to_tensor=True)
    torch.testing.assert_close(vectors, torch.nn.functional.normalize(plain, dim=1), atol=1e-6, rtol=0)


def test_vectors_are_those_of_sentence_transformers_and_of_each_text_alone(
    encoder: PretrainedTextEncoder, tiny_encoder_path: Path
) -> None:
    check_encoder(encoder, tiny_encoder_path)


@pytest.mark.real
def test_real_encoder(real_encoder_path: Path) -> None:
    encoder = PretrainedTextEncoder(real_encoder_path)
    check_encoder(encoder, real_encoder_path)
    near, far = "Turn the English word into French.", "Is the review positive or negative?"
    given_, close, other = encoder.encode(["Translate the English word to French.", near, far])
    assert given_ @ close > 0.8 > 0.4 > given_ @ other


@settings(max_examples=15)
@given(st.lists(st.sampled_from(TEXTS), max_size=8))
def test_order_and_repetition_do_not_matter(encoder: PretrainedTextEncoder, texts: list[str]) -> None:
    vectors = encoder.encode(texts)
    assert vectors.shape == (len(texts), 384)
    alone = encoder.encode(TEXTS)
    for text, vector in zip(texts, vectors, strict=True):
        torch.testing.assert_close(vector, alone[TEXTS.index(text)], atol=1e-6, rtol=0)


def test_dropout_is_never_on(encoder: PretrainedTextEncoder) -> None:
    model = encoder._model
    assert model is not None
    dropouts = [m for m in model.modules() if isinstance(m, torch.nn.Dropout)]
    assert any(m.p > 0 for m in dropouts)  # else this test could not fail
    first = encoder.encode(TEXTS)
    assert not any(m.training for m in model.modules())
    assert torch.equal(encoder.encode(TEXTS), first)
    assert not any(p.requires_grad for p in model.parameters())
    model.train()  # as a training loop does with its modules
    assert torch.equal(encoder.encode(TEXTS), first)


def test_vectors_may_enter_a_graph(encoder: PretrainedTextEncoder) -> None:
    weight = torch.ones(384, requires_grad=True)
    (encoder.encode(TEXTS[:2]) * weight).square().sum().backward()
    assert weight.grad is not None


def test_cached_texts_do_not_need_the_model(tiny_encoder_path: Path) -> None:
    cache = CountingCache()
    first = PretrainedTextEncoder(tiny_encoder_path, cache=cache)
    loaded = [first.loaded]
    expected = first.encode([*TEXTS, TEXTS[0]])
    loaded.append(first.loaded)
    assert loaded == [False, True]
    assert cache.told == len(TEXTS)

    second = PretrainedTextEncoder(tiny_encoder_path, cache=cache)
    assert torch.equal(second.encode([*TEXTS, TEXTS[0]]), expected)
    loaded = [second.loaded]
    assert cache.told == len(TEXTS)
    second.encode([*TEXTS, "a new one"])
    loaded.append(second.loaded)
    assert loaded == [False, True]
    assert cache.told == len(TEXTS) + 1


@pytest.mark.parametrize(
    "bad",
    [b"", b"\0" * 4 * 384, b"\0" * 10, b"\xff" * 4 * 384, torch.full((384,), 9.0).numpy().tobytes()],
    ids=["empty", "zeros", "short", "nan", "long"],
)
def test_a_value_that_is_no_vector_is_computed_anew(bad: bytes, tiny_encoder_path: Path) -> None:
    cache = CountingCache()
    encoder = PretrainedTextEncoder(tiny_encoder_path, cache=cache)
    expected = encoder.encode(TEXTS[:1])
    good = cache.get_many(cache.keys)
    cache.set_many(dict.fromkeys(cache.keys, bad))
    assert torch.equal(encoder.encode(TEXTS[:1]), expected)
    assert cache.get_many(cache.keys) == good


def test_keys_tell_texts_weights_and_pooling_apart(tiny_encoder_path: Path, tmp_path: Path) -> None:
    def keys(path: Path) -> set[str]:
        cache = CountingCache()
        PretrainedTextEncoder(path, cache=cache).encode(TEXTS[:3])
        return set(cache.keys)

    seen = keys(tiny_encoder_path)
    assert len(seen) == 3
    assert keys(tiny_encoder_path) == seen
    assert not seen & keys(build_tiny_encoder(tmp_path / "weights", seed=1))
    pooled = tmp_path / "pooling"
    shutil.copytree(tiny_encoder_path, pooled)
    settings_file = pooled / "1_Pooling" / "config.json"
    settings_file.write_text(settings_file.read_text().replace("mean", "max"))
    assert not seen & keys(pooled)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "vocab.txt"])
def test_keys_tell_tokenizers_apart(tiny_encoder_path: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(tiny_encoder_path, tmp_path / "other")
    same = PretrainedTextEncoder(tmp_path / "other").key_prefix
    with (tmp_path / "other" / name).open("a", encoding="utf-8") as file:
        file.write("\n")
    assert PretrainedTextEncoder(tmp_path / "other").key_prefix != same


def test_states_of_the_last_vectors_need_no_pass_of_their_own(
    tiny_encoder_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed: list[int] = []
    read = SentenceModel._passed

    def counted(self: SentenceModel, texts: Sequence[str], states: Any) -> Tensor:
        passed.append(len(texts))
        return read(self, texts, states)

    monkeypatch.setattr(SentenceModel, "_passed", counted)
    both = PretrainedTextEncoder(tiny_encoder_path)
    both.encode(TEXTS[:3])
    found = both.states([TEXTS[1], TEXTS[0], TEXTS[1]])
    assert passed == [3]
    expected = PretrainedTextEncoder(tiny_encoder_path).states([TEXTS[1], TEXTS[0], TEXTS[1]])
    assert passed == [3, 2]
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.places, other.places)
        torch.testing.assert_close(one.states, other.states, atol=1e-5, rtol=0)
    both.states([TEXTS[0], "new"])
    assert passed == [3, 2, 1]
    assert both.states([]) == []


def test_states_of_many_texts_are_not_kept(tiny_encoder_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    many, read = PretrainedTextEncoder(tiny_encoder_path), list[int]()
    texts = [f"task {i}" for i in range(100)]
    many.encode(texts)
    whole = SentenceModel.read

    def counted(model: SentenceModel, texts: Sequence[str]) -> tuple[Tensor, list[TokenStates]]:
        read.append(len(texts))
        return whole(model, texts)

    monkeypatch.setattr(SentenceModel, "read", counted)
    assert len(many.states(texts[:5])) == 5
    assert read == [5]


def test_threads_may_share_one(encoder: PretrainedTextEncoder) -> None:
    expected = encoder.encode(TEXTS)

    def work(number: int) -> None:
        for _ in range(5):
            torch.testing.assert_close(encoder.encode(TEXTS[number:]), expected[number:], atol=1e-6, rtol=0)

    in_threads(work, range(4))


def test_loading_draws_nothing(tiny_encoder_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    PretrainedTextEncoder(tiny_encoder_path).load().encode(["a"])
    out, err = capfd.readouterr()
    assert out == ""
    assert err == ""


def test_a_folder_of_another_kind_is_refused(tiny_base_path: Path, tmp_path: Path) -> None:
    with pytest.raises(PretrainedNotFoundError, match="not a sentence-transformers model"):
        PretrainedTextEncoder(tiny_base_path).load()
    with pytest.raises(PretrainedNotFoundError):
        PretrainedTextEncoder(tmp_path / "nothing").encode(["a"])


def test_name_is_the_one_given(tiny_encoder_path: Path) -> None:
    assert PretrainedTextEncoder(tiny_encoder_path).encoder_id == str(tiny_encoder_path)
    assert PretrainedTextEncoder().encoder_id == "sentence-transformers/all-MiniLM-L6-v2"
