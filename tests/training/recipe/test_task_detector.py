import random
from pathlib import Path

import pytest
import torch

from llgbm.checkpoint import load_generator
from llgbm.text_encoder import PretrainedTextEncoder
from tests.service.support.tiny_checkpoint import build_tiny_checkpoint
from training.recipe.task_detector import (
    SMALL_TALK,
    detector_quality,
    fit_detector,
    gibberish,
    null_prompts,
    short_form,
)


def test_texts_that_ask_for_nothing_are_gibberish_and_small_talk_and_the_same_for_a_seed() -> None:
    texts = null_prompts(300, 1)
    assert texts == null_prompts(300, 1) != null_prompts(300, 2)
    assert len(texts) == 300
    assert all(text.strip() for text in texts)
    assert sum(text in SMALL_TALK for text in texts) == 150


def test_a_short_form_stands_in_the_description() -> None:
    rng = random.Random(0)
    forms = {short_form("Translate the English word to French.", rng) for _ in range(200)}
    for form in forms:
        assert form.lower() in "translate the english word to french"
        assert 1 <= len(form.split()) <= 6
    assert len(forms) > 15


@pytest.fixture(scope="module")
def tiny_checkpoint_path(
    tmp_path_factory: pytest.TempPathFactory, tiny_base_path: Path, tiny_encoder_path: Path
) -> Path:
    return build_tiny_checkpoint(tmp_path_factory.mktemp("generator"), tiny_base_path, tiny_encoder_path)


def test_a_fitted_detector_tells_tasks_from_texts_that_ask_for_nothing(
    tiny_checkpoint_path: Path, tiny_encoder_path: Path
) -> None:
    checkpoint, encoder = load_generator(tiny_checkpoint_path), PretrainedTextEncoder(tiny_encoder_path).load()
    detector = fit_detector(checkpoint, encoder)
    rng = random.Random(7)
    groups = {
        "wordings": [text for task in checkpoint.manifest.tasks for text in task.descriptions],
        "gibberish": [gibberish(rng) for _ in range(200)],
    }
    found = detector_quality(detector, groups, encoder)
    assert found["wordings"]["n"] == len(groups["wordings"])
    assert found["wordings"]["taken_for_a_task"] > 0.9
    assert found["gibberish"]["taken_for_a_task"] < 0.2
    assert found["wordings"]["mean"] > 0.8 > 0.3 > found["gibberish"]["mean"]
    again = fit_detector(checkpoint, encoder)
    assert torch.equal(again.weight, detector.weight)
    assert torch.equal(again.bias, detector.bias)
