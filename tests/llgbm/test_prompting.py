import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from llgbm.checkpoint import Checkpoint, load_generator, save_generator
from llgbm.conditioning.context_choice import ContextChoice, ContextSetting
from llgbm.conditioning.task_detector import TaskDetector
from llgbm.errors import ConfigError
from llgbm.functional import FunctionalLoRA
from llgbm.lora import LoRAWeights
from llgbm.prompting import AdapterMaker, AdapterRequest, adapter_id, condition_of, example_lines
from llgbm.text_encoder import PretrainedTextEncoder
from tests.llgbm.test_checkpoint import manifest_of
from tests.small_generator import SPEC, SPECS, active_generator, conditions

BLANKS = ["", " ", "\n", "\t ", "\u00a0", "\u2003\r\n"]
words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8).filter(lambda w: bool(w.split()))
CURVE: dict[str, Any] = {"similarity": [0.5, 0.7, 0.9], "confidence": [0.1, 0.2, 0.8], "threshold": 0.15}
UPPER = AdapterRequest(("Write the word in capitals.",))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, encoder: PretrainedTextEncoder) -> Checkpoint:
    generator = active_generator()
    manifest = manifest_of(generator)
    embeddings = [encoder.encode(t.descriptions) for t in manifest.tasks]
    folder = tmp_path_factory.mktemp("generator")
    save_generator(folder, generator, manifest, embeddings)
    return load_generator(folder)


@pytest.fixture(scope="module")
def maker(checkpoint: Checkpoint, encoder: PretrainedTextEncoder) -> AdapterMaker:
    return AdapterMaker(checkpoint, encoder)


def calibrated(checkpoint: Checkpoint, curve: dict[str, Any] = CURVE) -> Checkpoint:
    return replace(checkpoint, manifest=replace(checkpoint.manifest, confidence=curve))


def id_of(request: AdapterRequest, **changes: Any) -> str:
    settings: dict[str, Any] = {"generator_digest": "d", "base_id": "b", "lora": SPEC} | changes
    return adapter_id(request, **settings)


def difference(left: LoRAWeights, right: LoRAWeights) -> float:
    return max(float((x - y).abs().max()) for x, y in zip(left.tensors, right.tensors, strict=True))


# requests and their ids


@given(parts=st.lists(words, min_size=1, max_size=4), data=st.data())
def test_white_space_and_unicode_form_do_not_change_a_request(parts: list[str], data: st.DataObject) -> None:
    def written() -> str:
        form: Literal["NFC", "NFD"] = data.draw(st.sampled_from(("NFC", "NFD")))
        gaps = [data.draw(st.sampled_from(BLANKS[1:])) for _ in parts]
        text = "".join(gap + part for gap, part in zip(gaps, parts, strict=True))
        return unicodedata.normalize(form, text + data.draw(st.sampled_from(BLANKS)))

    plain = " ".join(parts)
    expected = AdapterRequest((plain,), ((plain, "x"),))
    request = AdapterRequest((written(),), ((written(), data.draw(st.sampled_from(["x", " x\n"]))),))
    assert request == expected
    assert id_of(request) == id_of(expected)
    assert AdapterRequest(request.descriptions, request.examples) == request


@given(
    descriptions=st.lists(words, min_size=1, max_size=4),
    examples=st.lists(st.tuples(words, words), max_size=4),
    data=st.data(),
)
def test_the_order_of_descriptions_and_examples_does_not_change_the_id(
    descriptions: list[str], examples: list[tuple[str, str]], data: st.DataObject
) -> None:
    request = AdapterRequest(tuple(descriptions), tuple(examples))
    other = AdapterRequest(tuple(data.draw(st.permutations(descriptions))), tuple(data.draw(st.permutations(examples))))
    assert id_of(request) == id_of(other)
    assert request.texts == other.texts


@given(
    left=st.tuples(st.lists(words, max_size=3), st.lists(st.tuples(words, words), max_size=2)),
    right=st.tuples(st.lists(words, max_size=3), st.lists(st.tuples(words, words), max_size=2)),
)
def test_other_prompts_have_another_id(
    left: tuple[list[str], list[tuple[str, str]]], right: tuple[list[str], list[tuple[str, str]]]
) -> None:
    assume(any(left) and any(right))
    one, other = AdapterRequest(tuple(left[0]), tuple(left[1])), AdapterRequest(tuple(right[0]), tuple(right[1]))
    same = (sorted(one.descriptions), sorted(one.examples)) == (sorted(other.descriptions), sorted(other.examples))
    assert (id_of(one) == id_of(other)) is same


def test_everything_that_decides_an_adapter_is_in_its_id() -> None:
    ids = {
        id_of(UPPER),
        id_of(replace(UPPER, scale=0.5)),
        id_of(AdapterRequest((*UPPER.descriptions, *UPPER.descriptions))),
        id_of(AdapterRequest((), (("a", "b"),))),
        id_of(AdapterRequest((), (("b", "a"),))),
        id_of(AdapterRequest(("a", "b"))),
        id_of(AdapterRequest(("a b",))),
        id_of(UPPER, generator_digest="e"),
        id_of(UPPER, base_id="c"),
        *(id_of(UPPER, lora=spec) for name, spec in SPECS.items() if name != "all"),
    }
    assert len(ids) == 9 + len(SPECS) - 1


def test_an_id_is_a_name_that_files_and_urls_can_have_and_stays_the_same() -> None:
    assert id_of(UPPER) == "lora-3a2a41ab6c0f2b5edbb4f690"


@pytest.mark.parametrize(("scale", "equal"), [(1, 1.0), (0, 0.0), (-0.0, 0.0), (2, 2.0)])
def test_a_scale_has_one_form(scale: float, equal: float) -> None:
    assert id_of(AdapterRequest(("a",), scale=scale)) == id_of(AdapterRequest(("a",), scale=equal))


@pytest.mark.parametrize(
    ("descriptions", "examples", "scale", "message"),
    [
        ((), (), 1.0, "needs a description of the task or at least one example"),
        (("",), (), 1.0, "more than white space"),
        (("fine", " \n\u00a0"), (), 1.0, "more than white space"),
        (("fine",), (("", "x"),), 1.0, "more than white space"),
        (("fine",), (("x", "\t"),), 1.0, "more than white space"),
        (("fine",), (), float("nan"), "finite number, not nan"),
        (("fine",), (), float("-inf"), "finite number, not -inf"),
        (("half \ud83d pair",), (), 1.0, "no character"),
        ((), (("x", "\udc00"),), 1.0, "no character"),
    ],
)
def test_an_empty_or_broken_request_is_refused(
    descriptions: tuple[str, ...], examples: tuple[tuple[str, str], ...], scale: float, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        AdapterRequest(descriptions, examples, scale)


def test_the_encoder_reads_descriptions_and_example_lines() -> None:
    request = AdapterRequest(("b", "a"), (("2", "two"), ("1", "one")))
    assert request.texts == ("a", "b", "1 -> one", "2 -> two")
    assert example_lines(request.examples) == ("2 -> two", "1 -> one")


# conditions


def test_a_condition_is_the_normalised_mean_of_the_two_sides_means() -> None:
    descriptions, examples, none = conditions(3), conditions(5, seed=1), torch.zeros(0, 384)
    normalize = torch.nn.functional.normalize
    both = normalize(descriptions.mean(0) / 2 + examples.mean(0) / 2, dim=0)
    torch.testing.assert_close(condition_of(descriptions, examples), both)
    torch.testing.assert_close(condition_of(descriptions, none), normalize(descriptions.mean(0), dim=0))
    torch.testing.assert_close(condition_of(none, examples), normalize(examples.mean(0), dim=0))
    torch.testing.assert_close(condition_of(descriptions[:1], none), descriptions[0])
    many = examples.repeat(7, 1)
    torch.testing.assert_close(condition_of(descriptions, many), condition_of(descriptions, examples))


@given(n=st.integers(0, 4), m=st.integers(0, 4), seed=st.integers(0, 99))
def test_a_condition_has_length_one(n: int, m: int, seed: int) -> None:
    assume(n + m)
    condition = condition_of(conditions(n, seed=seed), conditions(m, seed=seed + 100))
    assert condition.shape == (384,)
    assert float(condition.norm()) == pytest.approx(1, abs=1e-5)


def test_a_condition_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs the embedding"):
        condition_of(torch.zeros(0, 384), torch.zeros(0, 384))


# making adapters

texts = st.sampled_from(["Sort the words.", "Translate to French.", "Give the first letter.", "Count.", "abc xyz"])
requests = st.builds(
    AdapterRequest,
    st.lists(texts, min_size=1, max_size=3).map(tuple),
    st.lists(st.tuples(texts, texts), max_size=2).map(tuple),
    st.sampled_from([1.0, 0.5, -1.0]),
)


@settings(max_examples=20)
@given(batch=st.lists(requests, min_size=1, max_size=4))
def test_making_many_at_once_is_making_each_alone(maker: AdapterMaker, batch: list[AdapterRequest]) -> None:
    together = maker.make(batch)
    assert [made.request for made in together] == batch
    for made, request in zip(together, batch, strict=True):
        (alone,) = maker.make([request])
        assert made.id == alone.id == maker.id_of(request)
        assert difference(made.weights, alone.weights) < 1e-5
        assert [name for name, _ in made.nearest] == [name for name, _ in alone.nearest]
        assert [c for _, c in made.nearest] == pytest.approx([c for _, c in alone.nearest], abs=1e-5)


def test_no_requests_make_no_adapters(maker: AdapterMaker) -> None:
    assert maker.make([]) == []


def test_the_same_request_gives_the_same_bits_in_any_order_of_its_texts(maker: AdapterMaker) -> None:
    one = AdapterRequest(("Count.", "Sort it."), (("b", "B"), ("a", "A")))
    other = AdapterRequest(("Sort  it.", "Count."), (("a", "A"), ("b", "B")))
    first, again = maker.make([one])[0], maker.make([other])[0]
    assert first.id == again.id
    assert difference(first.weights, again.weights) == 0


def test_an_adapter_is_what_the_generator_makes_of_the_condition(
    maker: AdapterMaker, encoder: PretrainedTextEncoder, checkpoint: Checkpoint
) -> None:
    request = AdapterRequest(("Count.",), (("a", "1"),))
    condition = condition_of(encoder.encode(["Count."]), encoder.encode(["a -> 1"]))
    with torch.no_grad():
        expected = checkpoint.generator(condition[None])[0]
    assert difference(maker.make([request])[0].weights, expected) < 1e-5


@pytest.mark.parametrize("scale", [0.0, 0.5, 2.0, -1.0])
def test_the_scale_multiplies_the_product(maker: AdapterMaker, scale: float) -> None:
    plain, scaled = maker.make([UPPER, replace(UPPER, scale=scale)])
    for name in SPEC.names:
        torch.testing.assert_close(scaled.weights.delta_weight(name), scale * plain.weights.delta_weight(name))


def test_timings_name_both_stages(maker: AdapterMaker) -> None:
    (made,) = maker.make([UPPER])
    assert made.seconds.keys() == {"encode", "generate"}
    assert min(made.seconds.values()) > 0


def test_nearest_tasks_come_best_first_and_a_training_description_finds_its_own(
    maker: AdapterMaker, checkpoint: Checkpoint
) -> None:
    for task in checkpoint.manifest.tasks:
        for description in task.descriptions:
            (made,) = maker.make([AdapterRequest((description,))])
            cosines = [cosine for _, cosine in made.nearest]
            assert made.nearest[0][0] == task.task_id
            assert cosines[0] == pytest.approx(1, abs=1e-3)
            assert cosines == sorted(cosines, reverse=True)
            assert len(made.nearest) == 3


class OneVector:
    """Encodes every text to one vector with a given cosine to the first training description."""

    def __init__(self, checkpoint: Checkpoint, cosine: float) -> None:
        first = checkpoint.prompt_index.embeddings[0]
        aside = torch.randn(first.shape, generator=torch.Generator().manual_seed(0))
        aside = torch.nn.functional.normalize(aside - (aside @ first) * first, dim=0)
        self.vector: Tensor = cosine * first + float((1 - cosine**2) ** 0.5) * aside

    def encode(self, texts: Sequence[str]) -> Tensor:
        return self.vector.expand(len(texts), -1)


@pytest.mark.parametrize(
    ("cosine", "confidence", "warned"),
    [
        (0.55, 0.125, True),
        (0.61, 0.155, False),
        (0.7, 0.2, False),
        (0.8, 0.5, False),
        (0.9, 0.8, False),
        (0.99, 0.8, False),
    ],
)
def test_confidence_is_read_off_the_calibrated_curve(
    checkpoint: Checkpoint, cosine: float, confidence: float, warned: bool
) -> None:
    index = checkpoint.prompt_index
    one = replace(checkpoint, prompt_index=replace(index, embeddings=index.embeddings[:1], task=index.task[:1]))
    (made,) = AdapterMaker(calibrated(one), OneVector(one, cosine)).make([UPPER])
    ((found, similarity),) = made.nearest
    assert found == "task_0"
    assert similarity == pytest.approx(cosine, abs=1e-5)
    assert made.confidence == pytest.approx(confidence, abs=1e-4)
    assert (made.warning is not None) is warned
    if made.warning is not None:
        assert "the nearest task that the generator knows is 'task_0, wording 0': give a few examples" in made.warning


@pytest.mark.parametrize("cosine", [-1.0, 0.0, 0.49])
def test_below_the_curve_confidence_is_that_of_its_first_point(checkpoint: Checkpoint, cosine: float) -> None:
    curve = {"similarity": [0.999999], "confidence": [0.3], "threshold": 0.4}
    (made,) = AdapterMaker(calibrated(checkpoint, curve), OneVector(checkpoint, cosine)).make([UPPER])
    assert made.confidence == 0.3
    assert made.warning is not None


def test_without_calibration_there_is_no_confidence_and_no_warning(maker: AdapterMaker) -> None:
    (made,) = maker.make([UPPER])
    assert made.confidence is None
    assert made.warning is None


@pytest.mark.parametrize(("cosine", "scale"), [(0.2, 0.5), (0.69, 0.5), (0.71, 0.75), (0.99, 0.75)])
def test_the_scale_in_context_depends_on_the_nearest_prompt_and_changes_nothing_by_itself(
    checkpoint: Checkpoint, cosine: float, scale: float
) -> None:
    index = checkpoint.prompt_index
    one = replace(checkpoint, prompt_index=replace(index, embeddings=index.embeddings[:1], task=index.task[:1]))
    known = replace(one, manifest=replace(one.manifest, context_choice=ContextChoice.of_scales(0.7, 0.5, 0.75)))
    encoder = OneVector(one, cosine)
    (made,), (plain,) = (AdapterMaker(c, encoder).make([UPPER]) for c in (known, one))
    assert made.scale_in_context == AdapterMaker(known, encoder).context_setting(UPPER, "description").scale == scale
    assert plain.scale_in_context is None
    assert AdapterMaker(one, encoder).context_setting(UPPER) == ContextSetting("description", 1.0)
    assert difference(made.weights, plain.weights) == 0


def test_an_encoder_of_another_size_is_refused(checkpoint: Checkpoint) -> None:
    class Small:
        def encode(self, texts: Sequence[str]) -> Tensor:
            return torch.ones(len(texts), 128)

    with pytest.raises(ConfigError, match=r"shape \(1, 128\), this generator reads \(n, 384\)"):
        AdapterMaker(checkpoint, Small()).make([UPPER])


def test_a_made_adapter_changes_what_the_base_says(maker: AdapterMaker, tiny_base: Any) -> None:
    ids = torch.tensor([tiny_base.tokenizer("cat")["input_ids"]])
    (made,) = maker.make([UPPER])
    with torch.inference_mode():
        plain = tiny_base.model(ids).logits
        with FunctionalLoRA(tiny_base.model).applied(made.weights):
            assert (tiny_base.model(ids).logits - plain).abs().max() > 1e-3


def test_a_request_that_asks_for_no_task_is_held_back_and_warned_about(checkpoint: Checkpoint) -> None:
    encoder = OneVector(checkpoint, 0.9)
    examples = AdapterRequest(examples=(("a", "b"),))
    (open_, shown) = AdapterMaker(checkpoint, encoder).make([UPPER, examples])
    assert open_.task_probability == 1
    for bias, warned in ((-3.0, True), (3.0, False)):
        detector = TaskDetector(torch.zeros(checkpoint.generator.config.condition_size), torch.tensor(bias))
        (made, by_example) = AdapterMaker(replace(checkpoint, detector=detector), encoder).make([UPPER, examples])
        expected = float(torch.tensor(bias).sigmoid())
        assert made.task_probability == pytest.approx(expected)
        assert ("does not read like the description of a task" in (made.warning or "")) is warned
        assert by_example.task_probability == 1
        for name in made.weights.spec.names:
            torch.testing.assert_close(made.weights.b[name], open_.weights.b[name] * expected)
            assert torch.equal(made.weights.a[name], open_.weights.a[name])
            assert torch.equal(by_example.weights.b[name], shown.weights.b[name])
