from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from llgbm.conditioning.answer_words import WordScorer, metric_of, words_of
from llgbm.conditioning.sentence_model import TokenStates
from llgbm.conditioning.vocabulary import BaseVocabulary
from llgbm.errors import CheckpointError, ConfigError
from llgbm.text_encoder import PretrainedTextEncoder
from tests.small_generator import word_scorer
from tests.training.recipe.sampler_runs import TASKS
from tests.training.tasks.test_families import write
from training.recipe import answer_words
from training.recipe.answer_words import cases_of, first_word_found, fit_scorer, load_scorer, save_scorer
from training.runs.artefacts import read_manifest
from training.runs.metrics import read_metrics
from training.runs.results import read_results
from training.tasks.format import Example, Task

PAIRS = (("red", "blue"), ("cold", "warm"), ("yes", "no"), ("left", "right"), ("up", "down"), ("good", "bad"))
FORMS = ("Say {} or {}.", "Tell which it is: {} or {}", "Decide between {} and {}", "Is it {}, or is it {}?")


@pytest.fixture(scope="module")
def vocabulary(tiny_base_path: Path) -> BaseVocabulary:
    return BaseVocabulary(tiny_base_path)


@pytest.fixture
def config(tmp_path: Path, tasks_folder: Path, tiny_base_path: Path, tiny_encoder_path: Path) -> answer_words.Config:
    """Six tasks, five steps."""
    return answer_words.Config(
        workdir=tmp_path / "words", tasks=tasks_folder, base=str(tiny_base_path), text_encoder=str(tiny_encoder_path),
        steps=5,
    )  # fmt: skip


def task(name: str, wordings: Sequence[str], rows: Sequence[tuple[str, str]]) -> Task:
    examples = tuple(Example(given, wanted) for given, wanted in rows)
    test = tuple(replace(row, input=f"another {row.input}") for row in examples)
    return Task(name, "words", "made for tests", "CC0-1.0", tuple(wordings), "exact_match", None, examples, test)


def labelled(labels: tuple[str, str]) -> Task:
    """A task whose wordings name its two labels."""
    rows = [(f"case {i}", labels[i % 2]) for i in range(12)]
    return task("_".join(labels), [form.format(*labels) for form in FORMS], rows)


def path_of(config: answer_words.Config) -> Path:
    return config.workdir / answer_words.SCORER_FILE


# the cases


def test_cases_have_the_shares_of_answers_and_leave_out_the_row_of_an_example(
    encoder: PretrainedTextEncoder, vocabulary: BaseVocabulary
) -> None:
    rows = [("q", "yes"), ("w", "yes"), ("x", "no"), ("z", "yes")]
    one = task("votes", ["yes no", "no yes", "Is it?"], rows)
    found: set[tuple[float, ...]] = set()
    for seed in range(12):
        cases = cases_of([one], encoder, vocabulary, np.random.default_rng(seed))
        assert cases.features.dtype == torch.float16
        assert cases.shares.shape == (len(cases.features), 2, 3)
        # two wordings of two words, then "q", "-", ">" and the answer of a row
        assert len(cases.shares) == 4 + 4
        # bytes of "yes" that begin an answer: y, y, Y; that go on: blank, y, s
        yes, no = [[0.75, 0.75, 0], [0, 0, 0.75]], [[0.25, 0.25, 0], [0, 0, 0.25]]
        assert sorted(cases.shares[:4].tolist()) == sorted([yes, no, yes, no])
        assert not cases.shares[4:7].any()
        found.add(tuple(round(share, 4) for share in cases.shares[7].flatten().tolist()))
    # of the other three answers two are yes; the only no has no other
    assert found == {(0.6667, 0.6667, 0.0, 0.0, 0.0, 0.6667), (0.0,) * 6}


def test_cases_are_read_from_seen_wordings_and_training_rows_only(vocabulary: BaseVocabulary) -> None:
    class Recorder:
        def __init__(self) -> None:
            self.seen: list[str] = []

        def states(self, texts: Sequence[str]) -> list[TokenStates]:
            self.seen += texts
            return [TokenStates(torch.tensor([[0, len(text)]]), torch.zeros(1, 4)) for text in texts]

    recorder, told = Recorder(), list[int]()
    for seed in range(30):
        cases_of(TASKS, recorder, vocabulary, np.random.default_rng(seed), told.append)
    expected = {text for t in TASKS for text in t.seen_descriptions}
    assert {text for text in recorder.seen if " -> " not in text} == expected
    lines = {f"{row.input} -> {row.output}" for t in TASKS for row in t.train}
    assert {text for text in recorder.seen if " -> " in text} <= lines
    assert told[:3] == [1, 2, 3]


def test_no_tasks_are_refused(encoder: PretrainedTextEncoder, vocabulary: BaseVocabulary) -> None:
    with pytest.raises(ConfigError, match="no task has a wording to train on"):
        cases_of([], encoder, vocabulary, np.random.default_rng(0))


# the fit


def test_labels_that_a_wording_names_become_likely_and_other_words_do_not(
    encoder: PretrainedTextEncoder, vocabulary: BaseVocabulary
) -> None:
    tasks = [labelled(pair) for pair in PAIRS]
    parts = [cases_of(tasks, encoder, vocabulary, np.random.default_rng(seed)) for seed in range(3)]
    cases = answer_words.Cases(*(torch.cat(part) for part in zip(*parts, strict=True)))
    losses: list[float] = []
    settings = answer_words.Config(steps=60)
    metric = metric_of(vocabulary.all_readers())
    scorer = fit_scorer(cases, metric, settings, lambda _, loss: losses.append(loss))
    assert len(losses) == 60
    assert losses[-1] < 0.3 * losses[0]
    labels: list[float] = []
    others: list[float] = []
    for one, pair in zip(tasks, PAIRS, strict=True):
        for words in words_of(one.seen_descriptions, encoder):
            likely = scorer(words.features)[:, 0, 0]  # that an answer begins with the word as it is
            for word, p in zip(words.texts, likely.tolist(), strict=True):
                (labels if word in pair else others).append(p)
    assert sum(labels) / len(labels) > 0.4
    assert sum(others) / len(others) < 0.1
    assert first_word_found(scorer, encoder, vocabulary, tasks)["possible"] == 1
    assert first_word_found(scorer, encoder, vocabulary, []) == {}


def test_a_fit_leaves_the_global_generator_alone_and_repeats(
    encoder: PretrainedTextEncoder, vocabulary: BaseVocabulary
) -> None:
    cases = cases_of([labelled(PAIRS[0])], encoder, vocabulary, np.random.default_rng(0))
    before = torch.get_rng_state()
    settings, metric = answer_words.Config(steps=2), torch.eye(64)
    one, again, other = (
        fit_scorer(cases, metric, replace(settings, seed=seed), lambda _, __: None).digest for seed in (0, 0, 1)
    )
    assert one == again != other
    assert torch.equal(torch.get_rng_state(), before)


# the command


def test_the_command_writes_a_file_that_is_read_back(config: answer_words.Config, tmp_path: Path) -> None:
    (tmp_path / "families").mkdir()
    write(tmp_path / "families")
    answer_words.run(replace(config, heldout_families=tmp_path / "families"))
    scorer = load_scorer(path_of(config), None)
    scorer.require_sizes(384, 64)
    assert [line["step"] for line in read_metrics(config.workdir / "metrics" / "words.jsonl")] == list(range(5))
    result = read_results(config.workdir)["words"]
    assert (result["scorer"], result["heldout_tasks"]) == (scorer.digest, 2)
    assert set(result["first_token_found"]) <= {"possible", "found"}
    assert read_manifest(config.workdir)["answer_words.safetensors"].details["digest"] == scorer.digest


def test_the_file_holds_the_scorer_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "words.safetensors"
    path.parent.mkdir()
    save_scorer(path, word_scorer(), None)
    again: WordScorer = load_scorer(path, None)
    for name, tensor in word_scorer().tensors().items():
        assert torch.equal(again.tensors()[name], tensor), name


def test_a_scorer_of_another_text_encoder_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "words.safetensors"
    for fitted_to, asked in (("a" * 64, None), (None, "a" * 64), ("a" * 64, "b" * 64)):
        save_scorer(path, word_scorer(), fitted_to)
        assert load_scorer(path, fitted_to).digest == word_scorer().digest
        with pytest.raises(CheckpointError, match="was fitted to another text encoder"):
            load_scorer(path, asked)


def test_a_file_that_is_no_scorer_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "words.safetensors"
    with pytest.raises(CheckpointError, match=r"cannot be read: .*; name the file of `python -m training words`"):
        load_scorer(path, None)
    path.write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match="is not a scorer of answer words"):
        load_scorer(path, None)
    save_file({"mean": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match=r"a scorer of answer words has mean, .*, not mean"):
        load_scorer(path, None)


@pytest.mark.parametrize("change", [{"steps": 0}, {"learning_rate": 0.0}])
def test_settings_that_fit_nothing_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="steps must be at least 1, and learning_rate positive"):
        answer_words.Config(**change)  # type: ignore[arg-type]
