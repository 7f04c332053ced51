import math
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llgbm.ablations import AblationConfig, run_ablations
from llgbm.errors import ConfigError

Calls = list[tuple[str, int]]


def runner(calls: Calls, values: Mapping[tuple[str, int], float] | None = None):  # type: ignore[no-untyped-def]
    def run(kind: str, seed: int) -> Mapping[str, float]:
        calls.append((kind, seed))
        return {"cosine": 0.5 if values is None else values[kind, seed]}

    return run


def test_every_kind_is_run_with_every_seed_and_seeds_come_first() -> None:
    calls: Calls = []
    result = run_ablations(AblationConfig(("weight", "delta"), (0, 7)), runner(calls))
    assert calls == [("weight", 0), ("delta", 0), ("weight", 7), ("delta", 7)]
    assert [(a.kind, a.seed) for a in result.arms] == [("weight", 0), ("weight", 7), ("delta", 0), ("delta", 7)]


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=6))
def test_mean_and_sample_deviation(values: list[float]) -> None:
    seeds = tuple(range(len(values)))
    run = runner([], {("delta", s): v for s, v in zip(seeds, values, strict=True)})
    spread = run_ablations(AblationConfig(("delta",), seeds), run).summary()["delta"]["cosine"]
    mean = math.fsum(values) / len(values)
    variance = math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1)
    assert spread.mean == pytest.approx(mean, abs=1e-9)
    assert spread.deviation == pytest.approx(math.sqrt(variance), abs=1e-6)
    assert spread.count == len(values)


def test_of_one_seed_there_is_no_deviation() -> None:
    result = run_ablations(AblationConfig(("delta",), (3,)), runner([]))
    assert result.summary()["delta"]["cosine"].deviation is None
    assert result.to_dict()["summary"]["delta"]["cosine"] == {"mean": 0.5, "deviation": None, "count": 1}


def test_arms_with_different_metrics_are_refused() -> None:
    def run(kind: str, seed: int) -> Mapping[str, float]:
        return {f"of_{kind}": 1.0}

    with pytest.raises(ConfigError, match=r"\(delta, seed 0\) gives \['of_delta'\], earlier arms \['of_weight'\]"):
        run_ablations(AblationConfig(("weight", "delta"), (0,)), run)


def test_a_metric_that_is_no_number_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"cosine of the arm \(delta, seed 0\) is nan"):
        run_ablations(AblationConfig(("delta",), (0,)), runner([], {("delta", 0): math.nan}))


@pytest.mark.parametrize("values", [{"kinds": ()}, {"seeds": (1, 1)}, {"kinds": ("a", "a")}])
def test_an_empty_or_doubled_list_is_refused(values: dict[str, tuple[str, ...]]) -> None:
    with pytest.raises(ConfigError, match="needs at least one value, and none twice"):
        AblationConfig(**values)  # type: ignore[arg-type]
