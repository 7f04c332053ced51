import pytest
from hypothesis import given
from hypothesis import strategies as st

from llgbm.errors import ConfigError
from training.recipe.context_scale import ContextPoint, ContextScale, choose_scale, scale_table

SCALES = (0.25, 0.5, 1.0)
shares = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])
points = st.lists(
    st.builds(
        ContextPoint, st.booleans(), st.floats(0, 1).map(lambda x: round(x, 3)), st.tuples(shares, shares, shares)
    ),
    min_size=1,
    max_size=20,
)


def value(found: list[ContextPoint], chosen: ContextScale) -> float:
    """What is maximised, written down plainly."""
    sides = [[p for p in found if p.trained == trained] for trained in (True, False)]
    means = [
        sum(p.accuracies[SCALES.index(chosen.at(p.similarity))] for p in side) / len(side) for side in sides if side
    ]
    return sum(means) / len(means)


def test_near_and_far_get_the_scales_that_do_best_there() -> None:
    near = [ContextPoint(True, 0.8 + i / 100, (0.1, 0.5, 0.9)) for i in range(10)]
    far = [ContextPoint(False, 0.4 + i / 100, (0.2, 0.6, 0.1)) for i in range(3)]
    chosen = choose_scale([*near, *far], SCALES)
    assert (chosen.far, chosen.near) == (0.5, 1.0)
    assert 0.42 < chosen.similarity <= 0.8
    table = scale_table([*near, *far], SCALES, chosen)
    assert table["kinds kept back"] == {"n": 3, "accuracy": {"0.25": 0.2, "0.5": 0.6, "1": 0.1}, "chosen": 0.6}
    assert table["training tasks, unseen wordings"]["chosen"] == 0.9


@given(points)
def test_no_single_scale_does_better_and_the_far_one_is_not_larger(found: list[ContextPoint]) -> None:
    chosen = choose_scale(found, SCALES)
    assert chosen.far <= chosen.near
    best = max(value(found, ContextScale(0.0, scale, scale)) for scale in SCALES)
    assert value(found, chosen) >= best - 1e-6


@given(st.floats(0, 1), st.integers(1, 5))
def test_where_it_makes_no_difference_the_adapter_stays_as_it_is(accuracy: float, count: int) -> None:
    found = [ContextPoint(i % 2 == 0, i / 10, (accuracy,) * 3) for i in range(count)]
    chosen = choose_scale(found, SCALES)
    assert (chosen.far, chosen.near) == (1.0, 1.0)


def test_without_points_there_is_no_scale() -> None:
    with pytest.raises(ConfigError, match="measure more tasks"):
        choose_scale([], SCALES)
