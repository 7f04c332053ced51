import pytest
from hypothesis import given
from hypothesis import strategies as st

from llgbm.conditioning.context_choice import Context, ContextChoice, ContextSetting
from llgbm.errors import ConfigError
from training.recipe.context_choice import ContextPoint, accuracy_table, ranked_bins

PLACES: list[tuple[Context, float]] = [
    ("none", 1.0), ("description", 0.0), ("description", 1.0), ("examples", 0.0), ("examples", 0.5), ("examples", 1.0),
]  # fmt: skip
shares = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])
points = st.lists(
    st.builds(
        lambda trained, similarity, values: ContextPoint(
            trained, round(similarity, 3), dict(zip(PLACES, values, strict=True))
        ),
        st.booleans(),
        st.floats(0, 1),
        st.lists(shares, min_size=len(PLACES), max_size=len(PLACES)),
    ),
    min_size=1,
    max_size=20,
)


def point(trained: bool, similarity: float, *values: float) -> ContextPoint:
    return ContextPoint(trained, similarity, dict(zip(PLACES, values, strict=True)))


def test_near_and_far_get_the_context_and_the_scale_that_do_best_there() -> None:
    near = [point(True, 0.8 + i / 100, 0.9, 0.1, 0.7, 0.4, 0.5, 0.8) for i in range(4)]
    far = [point(False, 0.4 + i / 100, 0.0, 0.3, 0.2, 0.45, 0.5, 0.4) for i in range(4)]
    bins = ranked_bins([*near, *far], 2)
    assert [one.similarity for one in bins] == [0.4, pytest.approx(0.615)]
    assert bins[0].settings == (
        ContextSetting("examples", 0.5, 0.5), ContextSetting("description", 0.0, 0.3), ContextSetting("none", 1.0, 0.0),
    )  # fmt: skip
    assert bins[1].settings == (
        ContextSetting("none", 1.0, 0.9), ContextSetting("examples", 1.0, 0.8), ContextSetting("description", 1.0, 0.7),
    )  # fmt: skip
    table = accuracy_table([*near, *far], bins)
    assert {name: row["auto"] for name, row in table.items()} == {
        "training tasks, unseen wordings": 0.9,
        "kinds kept back": 0.5,
    }
    assert table["kinds kept back"]["accuracy"]["examples"] == {"0": 0.45, "0.5": 0.5, "1": 0.4}


def test_another_scale_than_the_whole_adapter_must_be_better_by_more_than_noise() -> None:
    def scale_if_the_base_wins(times: int) -> float:
        found = [point(True, 0.5, 0.0, *((0.6, 0.4) if i < times else (0.4, 0.6)), 0.0, 0.0, 0.0) for i in range(24)]
        return ranked_bins(found, 1)[0].settings[0].scale

    assert scale_if_the_base_wins(13) == 1.0  # 0.017 better without the adapter, and a standard error of 0.041
    assert scale_if_the_base_wins(18) == 0.0  # 0.100 better, and a standard error of 0.035


def test_the_number_of_bins_is_the_one_that_generalises() -> None:
    # scale 0 and 1 win in turn, whatever the distance: a choice in a small bin follows the last prompt seen
    noise = [point(True, 0.3 + i / 100, 0.0, *((0.4, 0.6) if i % 2 else (0.5, 0.4)), 0.0, 0.0, 0.0) for i in range(24)]
    assert len(ranked_bins(noise, 12)) < 6
    # near prompts need another scale than far ones
    real = [point(True, 0.3 + i / 40, 0.0, *((0.9, 0.1) if i < 12 else (0.1, 0.9)), 0.0, 0.0, 0.0) for i in range(24)]
    assert [one.settings[0].scale for one in ranked_bins(real, 2)] == [0.0, 1.0]
    assert len(ranked_bins(real[:1], 3)) == 1


@given(points, st.integers(1, 5))
def test_auto_is_on_its_own_points_never_behind_the_whole_adapter(found: list[ContextPoint], count: int) -> None:
    bins = ranked_bins(found, count)
    assert 1 <= len(bins) <= count
    table = accuracy_table(found, bins)
    auto = sum(row["auto"] for row in table.values()) / len(table)  # groups have equal weight
    for context in ("none", "description", "examples"):
        whole = sum(row["accuracy"][context]["1"] for row in table.values()) / len(table)
        assert auto >= whole - 1e-3
    without = [ContextPoint(p.trained, p.similarity, dict(list(p.accuracy.items())[:3])) for p in found]
    described = ranked_bins(without, 3)
    choice = ContextChoice(described, bins)  # the form of the manifest
    assert choice.ranking(-1, with_examples=True) == bins[0].settings
    assert choice.ranking(1, with_examples=False) == described[-1].settings


@given(st.floats(0, 1), st.integers(1, 5))
def test_where_it_makes_no_difference_the_adapter_is_whole_and_the_context_short(accuracy: float, count: int) -> None:
    found = [point(i % 2 == 0, i / 10, *[accuracy] * len(PLACES)) for i in range(count)]
    for one in ranked_bins(found, 3):
        assert [(s.context, s.scale) for s in one.settings] == [("none", 1), ("description", 1), ("examples", 1)]


def test_without_points_there_is_no_choice() -> None:
    with pytest.raises(ConfigError, match="measure more tasks"):
        ranked_bins([], 3)
