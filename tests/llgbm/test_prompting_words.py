"""Adapters of a generator that reads the answer words of a request."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from llgbm.checkpoint import Checkpoint, load_generator, save_generator
from llgbm.conditioning.task_detector import TaskDetector
from llgbm.errors import ConfigError, PretrainedNotFoundError
from llgbm.prompting import AdapterMaker, AdapterRequest, TextEncoder, condition_of, joined_condition
from llgbm.text_encoder import PretrainedTextEncoder
from tests.llgbm.test_checkpoint import manifest_of
from tests.small_generator import SMALL, WORDY, active_generator, word_scorer


class Plain:
    """The vectors of the tiny encoder, without states of tokens."""

    def __init__(self, encoder: PretrainedTextEncoder) -> None:
        self._encoder = encoder

    def encode(self, texts: Sequence[str]) -> Tensor:
        return self._encoder.encode(texts)


LAST_DOWN = "model.layers.1.mlp.down_proj"
REQUESTS = [
    AdapterRequest(("Say billing or delivery.",)),
    AdapterRequest(("Say refunds or parcels.", "Which is it: refunds or parcels?")),
    AdapterRequest((), (("it is late", "delivery"), ("it costs too much", "billing"))),
    AdapterRequest(("Say billing or delivery.",), (("it is late", "delivery"),)),
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, encoder: PretrainedTextEncoder) -> Checkpoint:
    generator = active_generator(config=WORDY)
    manifest, folder = manifest_of(generator), tmp_path_factory.mktemp("wordy")
    embeddings = [encoder.encode(t.descriptions) for t in manifest.tasks]
    save_generator(folder, generator, manifest, embeddings, word_scorer=word_scorer())
    return load_generator(folder)


@pytest.fixture(scope="module")
def maker(checkpoint: Checkpoint, encoder: PretrainedTextEncoder, tiny_base_path: Path) -> AdapterMaker:
    return AdapterMaker(checkpoint, encoder, base=tiny_base_path)


# the input of a generator


def test_a_condition_goes_on_with_the_mean_of_its_sides_words() -> None:
    draw = torch.Generator().manual_seed(0)
    vectors, words = torch.randn(5, 8, generator=draw), torch.randn(5, 6, generator=draw)
    described, shown = words[:2].mean(0), words[2:].mean(0)
    both = joined_condition(vectors, words, 2)
    assert torch.equal(both[:8], condition_of(vectors[:2], vectors[2:]))
    torch.testing.assert_close(both[8:], (described + shown) / 2)
    torch.testing.assert_close(joined_condition(vectors[:2], words[:2], 2)[8:], described)
    torch.testing.assert_close(joined_condition(vectors[2:], words[2:], 0)[8:], shown)


def test_without_words_it_is_the_condition() -> None:
    vectors = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(joined_condition(vectors, None, 1), condition_of(vectors[:1], vectors[1:]))
    for words in (None, torch.zeros(0, 6)):
        with pytest.raises(ConfigError, match="a condition needs"):
            joined_condition(vectors[:0], words, 0)


# adapters


def test_an_adapter_has_the_words_of_its_request(
    maker: AdapterMaker, checkpoint: Checkpoint, encoder: PretrainedTextEncoder, tiny_base_path: Path
) -> None:
    words = checkpoint.answer_words(encoder, tiny_base_path)
    assert words is not None
    for request, made in zip(REQUESTS, maker.make(REQUESTS), strict=True):
        texts, split = request.texts, len(request.descriptions)
        condition = joined_condition(encoder.encode(texts), words.encode(texts), split)
        _, _, _, gain = checkpoint.generator.changes(condition[None])
        assert gain is not None
        (by_hand,) = checkpoint.generator(condition[None])
        for name in made.weights.spec.names:
            torch.testing.assert_close(made.weights.a[name], by_hand.a[name], atol=1e-3, rtol=1e-3)
            torch.testing.assert_close(made.weights.b[name], by_hand.b[name], atol=1e-2, rtol=1e-2)


def test_another_label_word_gives_another_adapter(maker: AdapterMaker) -> None:
    one, other = maker.make(REQUESTS[:2])
    columns = [made.weights.b[LAST_DOWN][:, -2:].flatten() for made in (one, other)]
    assert min(float(column.norm()) for column in columns) > 0
    assert (columns[0] - columns[1]).norm() > 0.2 * columns[0].norm()
    assert one.id != other.id


def test_a_request_alone_and_in_a_batch_is_alike(maker: AdapterMaker) -> None:
    for request, made in zip(REQUESTS, maker.make(REQUESTS), strict=True):
        (alone,) = maker.make([request])
        assert alone.id == made.id
        for name in made.weights.spec.names:
            torch.testing.assert_close(alone.weights.a[name], made.weights.a[name], atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(alone.weights.b[name], made.weights.b[name], atol=5e-3, rtol=5e-3)


def test_nothing_is_made_of_no_requests(maker: AdapterMaker) -> None:
    assert maker.make([]) == []


def test_the_nearest_task_and_the_detector_read_the_sentence_only(
    checkpoint: Checkpoint, encoder: PretrainedTextEncoder, tiny_base_path: Path
) -> None:
    weight = torch.randn(SMALL.condition_size, generator=torch.Generator().manual_seed(0))
    detector = TaskDetector(weight, torch.tensor(0.1))
    maker = AdapterMaker(replace(checkpoint, detector=detector), encoder, base=tiny_base_path)
    for request, made in zip(REQUESTS[:2], maker.make(REQUESTS[:2]), strict=True):
        sentence = condition_of(encoder.encode(request.texts), torch.zeros(0, SMALL.condition_size))
        found = [checkpoint.manifest.tasks[i].task_id for i, _ in checkpoint.prompt_index.nearest(sentence)]
        assert [name for name, _ in made.nearest] == found
        assert made.task_probability == pytest.approx(float(detector(sentence[None])), abs=1e-4)
        assert maker.context_setting(request).accuracy is None


def test_the_vectors_of_the_training_are_required_of_the_sentence_only(maker: AdapterMaker) -> None:
    maker.require_training_vectors()


# what cannot be read


def test_an_encoder_without_states_is_refused(
    checkpoint: Checkpoint, encoder: PretrainedTextEncoder, tiny_base_path: Path
) -> None:
    plain: TextEncoder = Plain(encoder)
    with pytest.raises(ConfigError, match=r"reads answer words; take the encoder of checkpoint.text_encoder\(\)"):
        AdapterMaker(checkpoint, plain, base=tiny_base_path)


def test_a_base_that_is_not_there_is_refused(
    checkpoint: Checkpoint, encoder: PretrainedTextEncoder, tmp_path: Path
) -> None:
    with pytest.raises(PretrainedNotFoundError):
        AdapterMaker(checkpoint, encoder, base=tmp_path / "nowhere")
