import shlex
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llgbm.errors import TaskFormatError
from training.cli.command_line import parse_words
from training.cli.config import load_config
from training.runs.artefacts import read_manifest
from training.runs.log import RunLog
from training.runs.results import command_of, read_result, read_results, write_result


@dataclass(frozen=True)
class Inner:
    rate: float = 1e-3
    names: tuple[str, ...] = ("a", "b")


@dataclass(frozen=True)
class Config:
    workdir: Path = Path("runs")
    text: str = ""
    maybe: Path | None = Path("x")
    flag: bool = False
    pairs: tuple[tuple[str, str], ...] = ()
    inner: Inner = field(default_factory=Inner)


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0\r\n\x85\u2028\u2029"), max_size=12)
CONFIGS = st.builds(
    Config,
    text=TEXT,
    maybe=st.sampled_from([None, Path("y z"), Path("x")]),
    flag=st.booleans(),
    pairs=st.lists(st.tuples(TEXT, TEXT), max_size=2).map(tuple),
    inner=st.builds(Inner, st.floats(0, 1e9), st.lists(TEXT, max_size=3).map(tuple)),
)


@given(CONFIGS)
def test_the_recorded_command_line_gives_the_same_configuration(config: Config) -> None:
    words = shlex.split(command_of("fit", config))
    assert words[:4] == ["python", "-m", "training", "fit"]
    assert load_config(Config, overrides=parse_words(words[4:]).overrides) == config


def test_the_defaults_need_no_words() -> None:
    assert command_of("fit", Config()) == "python -m training fit"


@dataclass(frozen=True)
class Reading:
    checkpoint: Path = Path("checkpoints/x")
    output: Path = Path("results/quality.json")
    steps: int = 3


def test_the_generator_and_the_output_are_named_though_they_are_the_default() -> None:
    line = "python -m training evaluate checkpoint=checkpoints/x output=results/quality.json"
    assert command_of("evaluate", Reading()) == line
    assert command_of("evaluate", Reading(steps=4)) == line + " steps=4"


def test_a_result_is_written_recorded_and_read(tmp_path: Path) -> None:
    config = Config(workdir=tmp_path)
    with RunLog(tmp_path, "fit", config) as log:
        path = write_result(log, "x", config, {"value": 0.5}, base_revision="r")
    found = read_result(path)
    assert found["value"] == 0.5
    assert found["command"] == command_of("fit", config)
    assert read_results(tmp_path) == {"x": found}
    assert read_manifest(tmp_path)["results/x.json"].base_revision == "r"


def test_a_number_that_json_does_not_have_is_refused(tmp_path: Path) -> None:
    config = Config(workdir=tmp_path)
    with RunLog(tmp_path, "fit", config) as log, pytest.raises(ValueError, match="JSON"):
        write_result(log, "x", config, {"value": float("nan")})
    assert read_results(tmp_path) == {}


@pytest.mark.parametrize("content", ["", "[]", '{"value": 1}'])
def test_what_is_no_result_is_refused_by_name(tmp_path: Path, content: str) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "x.json").write_text(content)
    with pytest.raises(TaskFormatError, match=r"x\.json"):
        read_results(tmp_path)
