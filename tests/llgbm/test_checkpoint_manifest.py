import json
from dataclasses import replace
from typing import Any

import pytest

from llgbm.checkpoint import FORMAT_VERSION, GeneratorManifest, TrainingTask
from llgbm.conditioning.context_choice import ContextChoice
from llgbm.config import LoRASpec
from llgbm.errors import CheckpointError
from tests.small_generator import IRREGULAR, SMALL, SPEC, SPECS, TINY

CURVE: dict[str, Any] = {"similarity": [0.2, 0.5, 0.9], "confidence": [0.0, 0.3, 0.8], "threshold": 0.25}
MANIFEST = GeneratorManifest(
    base_id=TINY.base_id,
    base_revision="abc",
    encoder_id="some/encoder",
    model=TINY,
    lora=SPEC,
    generator=SMALL,
    tasks=(TrainingTask("upper", "case", "own", "CC0-1.0", ("Write it big.", "Größer, bitte.")),),
    made_by={"command": "python -m training fit", "steps": 3},
    confidence=CURVE,
    digest="00",
)


def edited(**changes: Any) -> str:
    return json.dumps(json.loads(MANIFEST.to_json()) | changes)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_a_manifest_comes_back_from_json(spec: LoRASpec) -> None:
    manifest = replace(MANIFEST, lora=spec)
    assert GeneratorManifest.from_json(manifest.to_json()) == manifest
    assert GeneratorManifest.from_json(replace(manifest, confidence={}, tasks=()).to_json()).confidence == {}


def test_a_choice_of_context_comes_back_and_an_earlier_manifests_scales_become_one() -> None:
    choice = ContextChoice.of_scales(0.6, far=0.5, near=1.0)
    chosen = replace(MANIFEST, context_choice=choice)
    assert GeneratorManifest.from_json(chosen.to_json()) == chosen
    earlier = json.loads(MANIFEST.to_json())
    del earlier["context_choice"]
    assert GeneratorManifest.from_json(json.dumps(earlier)) == MANIFEST
    earlier["context_scale"] = {"similarity": 0.6, "far": 0.5, "near": 1.0}
    assert GeneratorManifest.from_json(json.dumps(earlier)) == chosen


def test_a_spec_that_the_format_cannot_say_is_refused_when_written() -> None:
    with pytest.raises(CheckpointError, match="same targets in every one of its layers"):
        replace(MANIFEST, lora=IRREGULAR).to_json()


def test_a_manifest_without_use_rslora_means_plain_lora() -> None:
    lora = json.loads(MANIFEST.to_json())["lora"]
    del lora["use_rslora"]
    assert GeneratorManifest.from_json(edited(lora=lora)) == MANIFEST


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a valid generator manifest"),
        ("{", "not a valid generator manifest"),
        ("[]", "not a valid generator manifest"),
        ("{}", "format_version"),
        (
            edited(format_version=FORMAT_VERSION + 1),
            f"format version {FORMAT_VERSION + 1}, this library reads {FORMAT_VERSION}; update the library",
        ),
        (edited(surprise=1), "surprise"),
        (edited(context_choice={"without_examples": []}), "context_choice|with_examples"),
        (edited(context_choice={"without_examples": [], "with_examples": []}), "bins of rising similarity"),
        (edited(context_scale={"similarity": 0.5}), "far"),
        (edited(tasks=[{"task_id": "a", "descriptions": []}]), "missing 3 required"),
        (edited(model={"name": "x"}), "ModelSpec"),
        (edited(generator={"depth": 3}), "depth"),
        (edited(lora={"rank": 4}), "alpha"),
        (json.dumps({k: v for k, v in json.loads(MANIFEST.to_json()).items() if k != "base_id"}), "base_id"),
    ],
)
def test_what_is_not_a_manifest_is_refused(text: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        GeneratorManifest.from_json(text)


@pytest.mark.parametrize(
    "change",
    [
        {"similarity": [0.2, 0.2, 0.9]},
        {"similarity": [0.9, 0.5, 0.2]},
        {"similarity": [], "confidence": []},
        {"confidence": [0.1, 0.2]},
        {"confidence": [0.1, 0.2, 1.2]},
        {"threshold": -0.1},
        {"threshold": float("nan")},
        {"threshold": None},
        {"similarity": "abc"},
    ],
)
def test_a_confidence_that_requests_would_fail_on_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="confidence"):
        replace(MANIFEST, confidence=CURVE | change)
    with pytest.raises(CheckpointError, match="confidence"):
        GeneratorManifest.from_json(edited(confidence=CURVE | change))


@pytest.mark.parametrize("key", ["similarity", "confidence", "threshold"])
def test_a_confidence_without_one_of_its_parts_is_refused(key: str) -> None:
    with pytest.raises(CheckpointError, match=key):
        replace(MANIFEST, confidence={k: v for k, v in CURVE.items() if k != key})
