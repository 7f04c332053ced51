from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer

from llgbm.conditioning.sentence_model import POOLING_FILE, SentenceModel
from llgbm.errors import PretrainedNotFoundError

TEXTS = ["Translate the English word to French.", "a", "", "Classify " * 400, *(f"task {i} " * i for i in range(40))]


@pytest.fixture
def folder(tiny_encoder_path: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_encoder_path, tmp_path / "encoder")


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    content = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    path.write_text(json.dumps(change(content)), "utf-8")


@pytest.mark.parametrize(
    "pooling",
    [
        {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False},
        {"pooling_mode_cls_token": True},
        {"pooling_mode_max_tokens": True},
        {"pooling_mode": "cls"},
        {"pooling_mode": ["max"]},
    ],
    ids=str,
)
@pytest.mark.parametrize("normalised", [True, False])
def test_vectors_are_those_of_sentence_transformers(folder: Path, pooling: dict[str, Any], normalised: bool) -> None:
    edit(folder / POOLING_FILE, lambda old: {"word_embedding_dimension": old["word_embedding_dimension"], **pooling})
    if not normalised:
        edit(folder / "modules.json", lambda modules: modules[:2])
    vectors = SentenceModel(folder)(TEXTS)
    expected = SentenceTransformer(str(folder), device="cpu").encode(TEXTS, convert_to_tensor=True)
    if normalised:
        vectors = torch.nn.functional.normalize(vectors, dim=1)
    torch.testing.assert_close(vectors, expected, atol=1e-6, rtol=1e-6)


def test_texts_are_cut_where_the_folder_says(folder: Path) -> None:
    edit(folder / "sentence_bert_config.json", lambda old: {**old, "max_seq_length": 6})
    model = SentenceModel(folder)
    assert model.max_tokens == 6
    cut, same = model(["reverse the word and then more", "reverse the word and"])
    torch.testing.assert_close(cut, same, atol=1e-6, rtol=0)
    (folder / "sentence_bert_config.json").unlink()
    edit(folder / "tokenizer_config.json", lambda old: {**old, "model_max_length": 10**30})
    config = json.loads((folder / "config.json").read_text("utf-8"))
    assert SentenceModel(folder).max_tokens == config["max_position_embeddings"]


def test_no_texts_are_no_rows(tiny_encoder_path: Path) -> None:
    assert SentenceModel(tiny_encoder_path)([]).shape == (0, 384)


def test_states_are_those_of_the_transformer_without_special_tokens(tiny_encoder_path: Path) -> None:
    text = "translate the english word to french"
    tokens = AutoTokenizer.from_pretrained(tiny_encoder_path)(text, return_tensors="pt")
    with torch.no_grad():
        hidden = AutoModel.from_pretrained(tiny_encoder_path)(**tokens).last_hidden_state[0].float()
    model = SentenceModel(tiny_encoder_path)
    _, ((places, states),) = model.read([text])
    assert places.shape == (len(states), 2)
    torch.testing.assert_close(states, hidden[1:-1], atol=1e-5, rtol=1e-5)
    # the vector is the mean of them and of the two special tokens
    mean = (states.sum(0) + hidden[0] + hidden[-1]) / (len(states) + 2)
    torch.testing.assert_close(model([text])[0], mean, atol=1e-5, rtol=1e-5)


def test_the_places_of_tokens_are_those_of_their_characters(tiny_encoder_path: Path) -> None:
    text = "Translate  the English word, please!"
    tokens = AutoTokenizer.from_pretrained(tiny_encoder_path).tokenize(text)
    _, ((places, _),) = SentenceModel(tiny_encoder_path).read([text])
    written = [text[begin:end].lower() for begin, end in places.tolist()]
    assert "".join(written) == text.lower().replace(" ", "")
    assert written == [token.removeprefix("##") for token in tokens]


def test_a_texts_states_do_not_depend_on_the_others_of_the_batch(tiny_encoder_path: Path) -> None:
    model = SentenceModel(tiny_encoder_path)
    vectors, found = model.read(TEXTS)
    assert torch.equal(vectors, model(TEXTS))
    for text, (places, states) in zip(TEXTS, found, strict=True):
        _, ((own_places, own_states),) = model.read([text])
        assert torch.equal(places, own_places)
        torch.testing.assert_close(states, own_states, atol=1e-5, rtol=0)
    assert model.read([])[1] == []


def with_dense(folder: Path) -> None:
    dense = {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"}
    edit(folder / "modules.json", lambda modules: [*modules[:2], dense])


def with_last_token(folder: Path) -> None:
    edit(folder / POOLING_FILE, lambda old: {"pooling_mode_lasttoken": True})


def with_two_poolings(folder: Path) -> None:
    edit(folder / POOLING_FILE, lambda old: {**old, "pooling_mode_cls_token": True})


def without_pooling(folder: Path) -> None:
    edit(folder / POOLING_FILE, lambda old: {"word_embedding_dimension": 384})


def with_lower_case(folder: Path) -> None:
    edit(folder / "sentence_bert_config.json", lambda old: {**old, "do_lower_case": True})


def with_prompt(folder: Path) -> None:
    edit(folder / "config_sentence_transformers.json", lambda old: {"default_prompt_name": "query"})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (with_dense, "modules Transformer, Pooling, Dense"),
        (with_last_token, "pooling lasttoken"),
        (with_two_poolings, "pooling mean and cls"),
        (without_pooling, "pooling none"),
        (with_lower_case, "do_lower_case True"),
        (with_prompt, "default prompt query"),
    ],
)
def test_other_parts_are_refused(folder: Path, change: Callable[[Path], None], named: str) -> None:
    change(folder)
    with pytest.raises(PretrainedNotFoundError, match=named):
        SentenceModel(folder)


@pytest.mark.parametrize("name", ["modules.json", POOLING_FILE])
def test_a_folder_of_another_kind_is_refused(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(PretrainedNotFoundError, match=f"has no {name}: it is not a sentence-transformers model"):
        SentenceModel(folder)


def test_the_package_is_not_imported(tiny_encoder_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from llgbm.text_encoder import PretrainedTextEncoder; "
        "PretrainedTextEncoder(Path(sys.argv[1])).encode(['a']); "
        "print(sorted({'sentence_transformers', 'sklearn', 'peft'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, str(tiny_encoder_path)]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == "[]\n"
