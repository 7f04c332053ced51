from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llgbm.conditioning.answer_words import (
    NUM_FEATURES,
    AnswerWords,
    WordScorer,
    metric_of,
    scorer_digest,
    spellings,
    words_of,
)
from llgbm.conditioning.sentence_model import TokenStates
from llgbm.conditioning.vocabulary import BaseVocabulary
from llgbm.errors import CheckpointError
from llgbm.pretrained.tiny import build_tiny_base
from llgbm.text_encoder import MemoryEmbeddingCache, PretrainedTextEncoder
from tests.small_generator import TINY, word_scorer

HIDDEN = TINY.hidden_size
TEXTS = ["Say billing or delivery.", "the parcel is late -> delivery", "Name the colour: red, green or blue!"]
_IN_EXAMPLE, _IN_ANSWER, _BEGINS_ANSWER, _QUOTED, _IN_CAPITALS = 0, 1, 2, 3, 7
"""Indices of features."""


@pytest.fixture(scope="module")
def vocabulary(tiny_base_path: Path) -> BaseVocabulary:
    return BaseVocabulary(tiny_base_path)


@pytest.fixture(scope="module")
def reader(encoder: PretrainedTextEncoder, vocabulary: BaseVocabulary) -> AnswerWords:
    return AnswerWords(word_scorer(), encoder, vocabulary)


def scored_by(feature: int | None = None, *, weight: float = 1.0) -> WordScorer:
    """A scorer that gives words with this feature a higher probability than others; None treats all alike."""
    scorer = word_scorer()
    w1 = torch.zeros_like(scorer.w1)
    if feature is not None:
        w1[0, feature - NUM_FEATURES] = 4.0
    w2 = torch.zeros_like(scorer.w2)
    w2[:, 0] = weight
    return replace(scorer, w1=w1, w2=w2)


class KeptCache(MemoryEmbeddingCache):
    """Remembers what it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[dict[str, bytes]] = []

    def set_many(self, items: Mapping[str, bytes]) -> None:
        self.told.append(dict(items))
        super().set_many(items)


class CountingEncoder:
    """The tiny encoder, and the texts whose states it was asked for."""

    def __init__(self, encoder: PretrainedTextEncoder) -> None:
        self.encoder, self.asked = encoder, list[str]()

    def states(self, texts: Sequence[str]) -> list[TokenStates]:
        self.asked += texts
        return self.encoder.states(texts)


def features_of(text: str, encoder: PretrainedTextEncoder) -> dict[str, list[float]]:
    (words,) = words_of([text], encoder)
    return dict(zip(words.texts, words.features[:, -NUM_FEATURES:].tolist(), strict=True))


# directions


def test_a_direction_raises_its_own_tokens_logit_by_one_and_the_others_by_less(vocabulary: BaseVocabulary) -> None:
    readers = vocabulary.all_readers()
    metric = metric_of(readers)
    logits = replace(word_scorer(), metric=metric).directions(readers) @ readers.T  # (directions, tokens)
    torch.testing.assert_close(logits.diagonal(), torch.ones(len(readers)), atol=1e-4, rtol=0)
    plain = replace(word_scorer(), metric=torch.eye(HIDDEN)).directions(readers) @ readers.T
    others = ~torch.eye(len(readers), dtype=torch.bool)
    assert logits[others].square().mean() < plain[others].square().mean()


def test_the_metric_is_the_inverse_of_the_covariance_with_a_ridge() -> None:
    readers = torch.randn(500, 8, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 9)
    covariance = readers.T @ readers / len(readers)
    ridge = torch.linalg.eigvalsh(covariance).median() * torch.eye(8)
    torch.testing.assert_close(metric_of(readers) @ (covariance + ridge), torch.eye(8), atol=1e-4, rtol=0)


# words and their features


def test_words_are_letters_and_digits_or_one_other_sign(encoder: PretrainedTextEncoder) -> None:
    (words,) = words_of(["Say 'yes', or no_2!"], encoder)
    assert list(words.texts) == ["Say", "'", "yes", "'", ",", "or", "no_2", "!"]
    assert words.features.shape == (8, encoder.dim + NUM_FEATURES)
    assert words.features.dtype == torch.float32


def test_a_word_has_the_mean_of_its_tokens_states(encoder: PretrainedTextEncoder) -> None:
    text = "classify billing"
    ((places, states),) = encoder.states([text])
    (words,) = words_of([text], encoder)
    own = places[:, 0] >= text.index("billing")
    assert 1 < int(own.sum()) < len(own)
    torch.testing.assert_close(words.features[1, : encoder.dim], states[own].mean(0))
    torch.testing.assert_close(words.features[0, : encoder.dim], states[~own].mean(0))


def test_the_answer_of_an_example_has_the_features_of_one(encoder: PretrainedTextEncoder) -> None:
    found = features_of("billing is wrong -> billing now", encoder)
    described = features_of("Is billing wrong now?", encoder)
    answer = (_IN_EXAMPLE, _IN_ANSWER, _BEGINS_ANSWER)
    assert [found["wrong"][i] for i in answer] == [1, 0, 0]
    assert [found["billing"][i] for i in answer] == [1, 1, 1]  # the last of the two
    assert [found["now"][i] for i in answer] == [1, 1, 0]
    assert {described[word][i] for word in described for i in answer} == {0}


def test_quotes_and_capitals_are_features(encoder: PretrainedTextEncoder) -> None:
    found = features_of("Say 'yes' or NO.", encoder)
    assert [word for word, row in found.items() if row[_QUOTED]] == ["yes"]
    assert [word for word, row in found.items() if row[_IN_CAPITALS]] == ["NO"]


def test_a_word_is_spelt_as_an_answer_may_begin_or_go_on_with_it(vocabulary: BaseVocabulary) -> None:
    first, later = spellings("bIlls", vocabulary)
    token = {text: vocabulary.encode(text)[0] for text in ("b", "B", " ", "s")}
    assert first == (token["b"], token["b"], token["B"])
    assert later == (token[" "], token["b"], token["s"])


def test_words_beyond_the_encoders_limit_are_left_out(encoder: PretrainedTextEncoder, reader: AnswerWords) -> None:
    long = "word " * 400
    (words,) = words_of([long + "billing"], encoder)
    assert 0 < len(words.texts) < 400
    assert set(words.texts) == {"word"}
    assert torch.equal(reader.encode([long + "billing"]), reader.encode([long + "delivery"]))
    assert bool(reader.encode([long]).any())


# rows


def test_a_text_without_words_gives_zeros(reader: AnswerWords) -> None:
    rows = reader.encode(["", "  ", *TEXTS])
    assert rows.shape == (5, reader.size) == (5, 2 * HIDDEN)
    assert rows.dtype == torch.float32
    assert not rows[:2].any()
    assert bool(rows[2:].any(1).all())
    assert reader.encode([]).shape == (0, reader.size)


def test_a_row_raises_the_tokens_of_its_words(encoder: PretrainedTextEncoder, vocabulary: BaseVocabulary) -> None:
    scorer = replace(scored_by(), metric=metric_of(vocabulary.all_readers()))
    (row,) = AnswerWords(scorer, encoder, vocabulary).encode(["dog"])
    for slot, tokens in enumerate(spellings("dog", vocabulary)):
        logits = vocabulary.all_readers() @ row.view(2, HIDDEN)[slot]
        assert set(logits.topk(len(set(tokens))).indices.tolist()) == set(tokens)


def test_a_token_that_several_words_have_counts_once(
    encoder: PretrainedTextEncoder, vocabulary: BaseVocabulary
) -> None:
    alike = AnswerWords(scored_by(), encoder, vocabulary)
    once, twice, same_begin, other = alike.encode(["bat", "bat bat bat", "bat bet", "bat fox"]).view(4, 2, HIDDEN)
    torch.testing.assert_close(twice, once)
    torch.testing.assert_close(same_begin[0], once[0])
    assert not torch.allclose(other[0], once[0], atol=0.01)


def test_the_word_with_the_highest_probability_decides_for_a_token(
    encoder: PretrainedTextEncoder, vocabulary: BaseVocabulary
) -> None:
    capitals = AnswerWords(scored_by(_IN_CAPITALS), encoder, vocabulary)
    high, low, both, turned = capitals.encode(["BAT", "bat", "bat BAT", "BAT bat"])[:, :HIDDEN]
    assert high.norm() > 1.2 * low.norm()
    torch.testing.assert_close(both, high)
    torch.testing.assert_close(turned, high)


def test_a_row_does_not_depend_on_the_other_texts(reader: AnswerWords) -> None:
    together = reader.encode([*TEXTS, "a longer text " * 20, TEXTS[0]])
    alone = torch.cat([reader.encode([text]) for text in TEXTS])
    torch.testing.assert_close(together[:3], alone, atol=2e-3, rtol=2e-3)
    assert torch.equal(together[0], together[-1])


# the cache


def test_cached_rows_are_equal_to_computed_ones(encoder: PretrainedTextEncoder, vocabulary: BaseVocabulary) -> None:
    counting, cache = CountingEncoder(encoder), KeptCache()
    cached = AnswerWords(word_scorer(), counting, vocabulary, cache=cache)
    first = cached.encode(TEXTS)
    assert counting.asked == TEXTS
    assert torch.equal(cached.encode([*TEXTS[::-1], "new"])[:3], first.flip(0))
    assert counting.asked == [*TEXTS, "new"]
    assert torch.equal(AnswerWords(word_scorer(), encoder, vocabulary).encode(TEXTS), first)


@pytest.mark.parametrize("value", [b"", b"\0\0", b"\xff" * 4 * HIDDEN], ids=["empty", "short", "not a number"])
def test_a_broken_cached_value_is_computed_again(
    encoder: PretrainedTextEncoder, vocabulary: BaseVocabulary, value: bytes
) -> None:
    counting, cache = CountingEncoder(encoder), KeptCache()
    cached = AnswerWords(word_scorer(), counting, vocabulary, cache=cache)
    expected = cached.encode(TEXTS[:1])
    (stored,) = cache.told
    cache.set_many(dict.fromkeys(stored, value))
    assert torch.equal(cached.encode(TEXTS[:1]), expected)
    assert counting.asked == [TEXTS[0]] * 2
    assert cache.told[-1] == stored


def test_keys_tell_encoders_scorers_and_bases_apart(
    encoder: PretrainedTextEncoder, vocabulary: BaseVocabulary, tmp_path: Path
) -> None:
    def keys(scorer: WordScorer, base: BaseVocabulary, encoder_key: str) -> frozenset[str]:
        cache = KeptCache()
        AnswerWords(scorer, encoder, base, cache=cache, encoder_key=encoder_key).encode(TEXTS)
        return frozenset(cache.told[0])

    other_base = BaseVocabulary(build_tiny_base(tmp_path / "other", seed=1))
    usual = keys(word_scorer(), vocabulary, "one")
    others = [
        keys(word_scorer(seed=1), vocabulary, "one"),
        keys(word_scorer(), other_base, "one"),
        keys(word_scorer(), vocabulary, "two"),
    ]
    assert keys(word_scorer(), vocabulary, "one") == usual
    assert len(usual) == len(TEXTS)
    assert len(usual.union(*others)) == 4 * len(TEXTS)


# the scorer


def test_a_scorer_comes_back_from_its_tensors() -> None:
    scorer = word_scorer()
    again = WordScorer.from_tensors({name: tensor.half() for name, tensor in scorer.tensors().items()})
    assert again.digest == scorer.digest == scorer_digest(again)
    assert scorer_digest(None) is None
    assert {tensor.dtype for tensor in again.tensors().values()} == {torch.float32}
    assert word_scorer(seed=1).digest != scorer.digest


def without_mean(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name != "mean"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_mean, "a scorer of answer words has mean, .* not b1"),
        (lambda tensors: tensors | {"w3": torch.zeros(1)}, "not .*w3"),
        (lambda tensors: tensors | {"b2": tensors["b2"] * torch.nan}, "not finite"),
        (lambda tensors: tensors | {"spread": tensors["spread"] * torch.inf}, "not finite"),
    ],
)
def test_tensors_of_something_else_are_refused(change: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        WordScorer.from_tensors(change(word_scorer().tensors()))
