from pathlib import Path

import pytest

from llgbm.errors import ConfigError
from training.phases import pipeline
from training.runs.results import read_results

SMALL = """
shared: {{workdir: {work}, folder: {tasks}, base: {base}, probes: {{count: 2, layers: 1}}}}
teachers: {{tasks: [upper, title, next, parity], lora_rank: 4, lora_alpha: 8, steps: 2, rows_per_step: 2}}
deltas:
report: {{title: Small}}
"""


@pytest.fixture
def plan(tmp_path: Path, tasks_folder: Path, tiny_base_path: Path) -> Path:
    file = tmp_path / "plan.yaml"
    file.write_text(SMALL.format(work=tmp_path / "work", tasks=tasks_folder, base=tiny_base_path))
    return file


def test_a_plan_is_run_in_the_order_of_the_method_and_goes_on_where_it_stopped(plan: Path) -> None:
    assert list(pipeline.run_plan(plan, ["teachers"])) == ["teachers"]
    stamps = {p: p.stat().st_mtime_ns for p in plan.parent.rglob("*.safetensors")}
    assert list(pipeline.run_plan(plan)) == ["teachers", "deltas", "report"]
    assert all(p.stat().st_mtime_ns == stamp for p, stamp in stamps.items())
    assert len(stamps) == 4
    assert list(read_results(plan.parent / "work")) == ["deltas"]
    assert "<title>Small</title>" in (plan.parent / "work" / "report" / "report.html").read_text()


def test_an_error_in_a_later_section_stops_the_plan_before_its_first_command(plan: Path) -> None:
    plan.write_text(plan.read_text().replace("title: Small", "titel: Small"))
    with pytest.raises(ConfigError, match=r"titel: unknown key; did you mean title\?"):
        pipeline.run_plan(plan)
    assert not (plan.parent / "work").exists()


def test_shared_values_win_over_the_plan_for_every_command_that_has_them(plan: Path) -> None:
    other = plan.parent / "other"
    shared = [f"workdir={other}", "probes.count=3"]
    assert list(pipeline.run_plan(plan, ["teachers", "deltas"], shared)) == ["teachers", "deltas"]
    assert len(read_results(other)["deltas"]["probes"]) == 3
    assert not (plan.parent / "work").exists()
    with pytest.raises(ConfigError, match="shared: none of teachers has a value 'probez'"):
        pipeline.run_plan(plan, ["teachers"], ["probez=1"])


def test_a_command_without_a_section_is_refused(plan: Path) -> None:
    with pytest.raises(ConfigError, match="has no section 'match'; it has shared, teachers, deltas, report"):
        pipeline.run_plan(plan, ["match"])
    with pytest.raises(ConfigError, match="'cook' is none of teachers, "):
        pipeline.Config(phases=("cook",))
    plan.write_text(f"{plan.read_text()}\nrefine: {{steps: 1}}\n")
    with pytest.raises(ConfigError, match="does not run refine; run its commands one by one, or name those"):
        pipeline.run_plan(plan)
    plan.write_text("shared: {}\n")
    with pytest.raises(ConfigError, match="no section for any of teachers"):
        pipeline.run_plan(plan)
