import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llgbm.checkpoint import GeneratorManifest
from llgbm.errors import ConfigError
from tests.small_generator import active_generator
from training.recipe.confidence import Point, confidence_curve, reliability

UNIT = st.floats(0, 1, allow_subnormal=False)
POINTS = st.lists(st.builds(Point, st.sampled_from("abc"), UNIT, UNIT), min_size=2, max_size=60)


@given(POINTS, UNIT)
def test_a_curve_is_one_that_a_manifest_takes_and_never_falls(points: list[Point], threshold: float) -> None:
    if len({round(p.similarity, 3) for p in points}) < 2:
        return
    curve = confidence_curve(points, threshold)
    generator = active_generator()
    GeneratorManifest("base", "r", "encoder", generator.model, generator.lora, generator.config, (), confidence=curve)
    assert curve["confidence"] == sorted(curve["confidence"])
    assert curve["threshold"] == threshold


def test_a_curve_follows_what_was_measured() -> None:
    points = [Point("a", x, 0.0 if x < 0.5 else 0.8) for x in np.linspace(0, 1, 41)]
    curve = confidence_curve(points, 0.25)
    assert np.interp([0.0, 0.4, 0.6, 1.0], curve["similarity"], curve["confidence"]) == pytest.approx([0, 0, 0.8, 0.8])


def test_one_prompt_does_not_make_an_end_of_the_curve() -> None:
    points = [Point("a", x, 0.5) for x in np.linspace(0, 0.9, 320)]
    curve = confidence_curve([*points, Point("a", 1.0, 1.0)], 0.25)
    assert max(curve["confidence"]) < 0.55


def test_reliability_counts_every_prompt_once_and_predicts_a_category_without_its_own_points() -> None:
    near = [Point("near", 0.9 + i / 1000, 0.8) for i in range(20)]
    far = [Point("far", 0.1 + i / 1000, 0.1) for i in range(20)]
    alone = reliability([*near, *far], bins=2)
    assert sum(b["n"] for b in alone["bins"]) == 40
    assert alone["error"] == pytest.approx(0.7)  # near is predicted from far alone, and far from near
    more = [Point("near too", 0.9 + i / 1000, 0.8) for i in range(20)]
    more += [Point("far too", 0.1 + i / 1000, 0.1) for i in range(20)]
    both = reliability([*near, *far, *more], bins=2)
    assert both["error"] == pytest.approx(0, abs=1e-3)  # a group may hold prompts of both distances
    assert both["spread"] == pytest.approx(0.35, abs=1e-3)


def test_too_little_to_measure_on_is_an_error() -> None:
    with pytest.raises(ConfigError, match="two distances"):
        confidence_curve([Point("a", 0.5, 1.0), Point("b", 0.5, 0.0)], 0.2)
    with pytest.raises(ConfigError, match="of one category"):
        reliability([Point("a", 0.5, 1.0), Point("a", 0.6, 0.0)])
