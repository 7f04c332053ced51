from pathlib import Path
from typing import Any

from benchmarks.measuring.measure import over, result
from benchmarks.measuring.report import as_markdown, read_results, write_results

MACHINE = {"date": "2030-01-01", "threads": 2}


def entry(benchmark: str, **more: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {"arm_unit": "tokens/s", "target": 2.0} | more
    found = result(f"{benchmark} speed", {"a": [4.0, 6.0, 5.0], "b": [2.0]}, over("a", "b"), **arguments)
    return {**found.to_dict(), "benchmark": benchmark, "machine": MACHINE}


def test_what_is_written_is_read_again_and_shown(tmp_path: Path) -> None:
    results = {
        "one": [entry("one")],
        "two": [entry("two", target=3.0, note="a note")],
        "three": [entry("three", target=None)],
    }
    write_results(results, order=["two", "one", "three"], folder=tmp_path)
    assert list(read_results(tmp_path / "results.json")) == ["two", "one", "three"]
    assert "<svg" in (tmp_path / "results.svg").read_text("utf-8")
    page = (tmp_path / "RESULTS.md").read_text("utf-8")
    assert "| one speed | 2.5 ratio | ≥ 2 | reached | a 5 (4 to 6); b 2 (2 to 2) tokens/s | 1 |" in page
    assert "| two speed | 2.5 ratio | ≥ 3 | missed |" in page
    assert "- **two speed**: a note" in page
    assert "- two, one, three: date 2030-01-01, threads 2" in page


def test_a_lower_value_can_be_the_better_and_a_missing_arm_says_why() -> None:
    page = as_markdown([entry("one", higher=False, target=3.0), entry("two", missing={"c": "no compiler"})])
    assert "| ≤ 3 | reached |" in page
    assert "c could not run: no compiler" in page
    gone = result("x", {}, over("a", "b"), arm_unit="s", target=1.0, missing={"a": "why"}).to_dict()
    assert "| x | not measured | ≥ 1 |  |" in as_markdown([{**gone, "benchmark": "x", "machine": MACHINE}])


def test_nothing_was_measured_before(tmp_path: Path) -> None:
    assert read_results(tmp_path / "results.json") == {}
