import pytest

from benchmarks.measuring.measure import interleaved, over, rates, result


def test_arms_run_in_turns_after_the_warm_up() -> None:
    calls: list[str] = []
    seconds = interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, n=3, warm_up=2)
    assert calls == ["a", "b", "a", "b", "a", "b", "b", "a", "a", "b"]
    assert {arm: len(times) for arm, times in seconds.items()} == {"a": 3, "b": 3}


def test_a_result_has_medians_and_spread() -> None:
    speeds = rates({"a": [1.0, 2.0, 4.0], "b": [0.5, 0.25, 0.5]}, {"a": 8, "b": 2})
    found = result("x", speeds, over("a", "b"), arm_unit="tokens/s", target=1.0)
    assert found.arms == {"a": 4.0, "b": 4.0}
    assert found.spread == {"a": (2.0, 8.0), "b": (4.0, 8.0)}
    assert (found.value, found.n) == (1.0, 3)


def test_without_an_arm_there_is_no_value_but_its_reason() -> None:
    found = result("x", {"a": [1.0]}, over("a", "b"), arm_unit="s", missing={"b": "no compiler"})
    assert found.value is None
    assert found.missing == {"b": "no compiler"}
    with pytest.raises(KeyError):
        result("x", {"a": [1.0]}, over("a", "b"), arm_unit="s")
