from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llgbm.errors import ConfigError
from training.cli.config import config_digest, config_paths, load_config, to_dict, to_yaml


@dataclass(frozen=True)
class Optimiser:
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.99)
    kind: Literal["adamw", "sgd"] = "adamw"


@dataclass(frozen=True)
class Fit:
    steps: int = 10
    name: str = "run"
    quiet: bool = False
    workdir: Path = Path("runs")
    tasks: tuple[str, ...] = ()
    limit: int | None = None
    note: str | None = None
    widths: tuple[int, ...] = ()
    optimiser: Optimiser = Optimiser(lr=0.5)
    second: Optimiser | None = None
    made: int = field(default=3, init=False)

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ConfigError(f"steps must not be negative, not {self.steps}")


@dataclass(frozen=True)
class Other:
    rank: int = 8
    workdir: Path = Path("runs")


@dataclass(frozen=True)
class Needs:
    data: Path
    fit: Fit = Fit()


OTHERS = {"teachers": lambda: Other}


def write(folder: Path, text: str, name: str = "c.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_without_files_and_overrides_it_is_the_default() -> None:
    assert load_config(Fit) == Fit()


def test_values_are_read_by_the_type_of_their_field(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        "steps: 1_000\nname: no\nquiet: true\nworkdir: ~/x\ntasks: [a, 1, 'no']\nlimit: null\n"
        "widths: [1, 2]\noptimiser: {lr: 1e-3, kind: sgd}\n",
    )
    config = load_config(Fit, [file])
    assert (config.steps, config.name, config.quiet, config.limit) == (1000, "no", True, None)
    assert config.workdir == Path.home() / "x"
    assert config.tasks == ("a", "1", "no")
    assert config.widths == (1, 2)
    assert config.optimiser == Optimiser(lr=0.001, kind="sgd")


def test_a_nested_value_lies_on_top_of_the_default_of_its_parent() -> None:
    assert load_config(Fit, overrides=["optimiser.kind=sgd"]).optimiser == Optimiser(lr=0.5, kind="sgd")
    assert load_config(Fit, overrides=["second.kind=sgd"]).second == Optimiser(kind="sgd")
    assert load_config(Fit, overrides=["second.kind=sgd", "second=null"]).second is None


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("tasks=a,b", ("a", "b")),
        ("tasks=[a, b]", ("a", "b")),
        ("tasks=a", ("a",)),
        ("tasks=", ()),
        ("note=", None),
        ("note=''", ""),
        ("note='none'", "none"),
        ("name=a=b, c", "a=b, c"),
        ("limit=7", 7),
        ("limit=none", None),
        ("optimiser.betas=0,1e-1", (0.0, 0.1)),
        ("optimiser.lr=.inf", float("inf")),
        ("optimiser.lr=-2", -2.0),
        ("optimiser={lr: 1}", Optimiser(lr=1.0)),
    ],
)
def test_overrides(override: str, value: Any) -> None:
    found: Any = load_config(Fit, overrides=[override])
    for part in override.partition("=")[0].split("."):
        found = getattr(found, part)
    assert found == value


def test_later_files_and_overrides_win_key_by_key(tmp_path: Path) -> None:
    first = write(tmp_path, "steps: 1\nname: first\noptimiser: {lr: 1, kind: sgd}")
    second = write(tmp_path, "steps: 2\noptimiser: {lr: 2}", "d.yaml")
    config = load_config(Fit, [first, second], ["steps=3", "steps=4"])
    assert (config.steps, config.name, config.optimiser) == (4, "first", Optimiser(lr=2, kind="sgd"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stepz=1", r"stepz: unknown key; did you mean steps\?"),
        ("lr=1", r"lr: unknown key; did you mean optimiser.lr\?"),
        ("optimiser.lrs=1", r"optimiser.lrs: unknown key; did you mean lr\?"),
        ("qqq=1", "qqq: unknown key; Fit has steps, name"),
        ("made=1", "made: unknown key"),
        ("steps=1.5", "steps: expected int, got '1.5'"),
        ("steps=true", "steps: expected int"),
        ("steps='1'", "steps: expected int, got '1' in quotes"),
        ("steps=[1]", "steps: expected int, got a list of 1"),
        ("quiet=yes", "quiet: expected true or false, got 'yes'"),
        ("quiet=1", "quiet: expected true or false"),
        ("limit=x", "limit: expected int, got 'x'"),
        ("optimiser.lr=nan", "optimiser.lr: expected float"),
        ("optimiser.kind=adam", "optimiser.kind: expected one of adamw, sgd, got 'adam'"),
        ("optimiser.betas=1,2,3", "optimiser.betas: expected list of 2: float, float, got '1,2,3'"),
        ("optimiser=3", "optimiser: expected a mapping of keys to values, got '3'"),
        ("widths=1,x", r"widths\[1\]: expected int, got 'x'"),
        ("steps", "'steps': expected name=value"),
        ("=1", "'=1': expected name=value"),
        ("tasks=[a", r"tasks: '\[a' is not YAML"),
        ("steps=-1", "steps must not be negative, not -1"),
        ("teachers.rank=1", "teachers: belongs to another command than fit"),
    ],
)
def test_what_is_wrong_is_refused_with_its_path(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(Fit, overrides=[override], section="fit", other_sections=OTHERS)


def test_a_value_without_default_must_be_given_and_nested_errors_have_the_path() -> None:
    with pytest.raises(ConfigError, match="data: has no default and was not given; add data="):
        load_config(Needs)
    with pytest.raises(ConfigError, match="fit: steps must not be negative"):
        load_config(Needs, overrides=["data=x", "fit.steps=-1"])
    assert load_config(Needs, overrides=["data=x", "fit.steps=1"]) == Needs(Path("x"), Fit(steps=1))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\nsteps: x", r"c\.yaml:2: steps: expected int"),
        (
            "name: a\noptimiser:\n  lr: 1\n  lrx: 2",
            r"c\.yaml:4: optimiser.lrx: unknown key; did you mean lr\?",
        ),
        ("steps: 1\nsteps: 2", r"c\.yaml:1: steps: duplicate key"),
        ("- a", r"c\.yaml:1: the file: expected a mapping"),
        ("a: [", r"c\.yaml: is not YAML"),
        ("? [a]\n: 1", r"c\.yaml:1: a key must be a plain text"),
        ("shared: {workdri: x}", r"c\.yaml:1: shared.workdri: unknown key; did you mean workdir\?"),
    ],
)
def test_a_wrong_file_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(Fit, [write(tmp_path, text)], section="fit", other_sections=OTHERS)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(Fit, [tmp_path / "no.yaml"])


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    assert load_config(Fit, [write(tmp_path, "")]) == Fit()


def test_one_file_serves_several_commands(tmp_path: Path) -> None:
    file = write(tmp_path, "shared: {workdir: w, rank: 4, steps: 1}\nfit: {steps: 2}\nteachers: {rank: 16}")
    sections = {"fit": lambda: Fit, "teachers": lambda: Other}
    fit = load_config(Fit, [file], ["fit.name=x"], section="fit", other_sections=sections)
    assert (fit.steps, fit.workdir, fit.name) == (2, Path("w"), "x")
    other = load_config(Other, [file], section="teachers", other_sections=sections)
    assert other == Other(16, Path("w"))


def test_a_field_may_have_the_name_of_a_section(tmp_path: Path) -> None:
    file = write(tmp_path, "fit: {tasks: [a, b], steps: 2}\ntasks: {rank: 1}\noptimiser: {lr: 3}")
    sections = {"tasks": lambda: Other, "optimiser": lambda: Other}
    config = load_config(Fit, [file], section="fit", other_sections=sections)
    assert (config.tasks, config.steps, config.optimiser.lr) == (("a", "b"), 2, 3.0)
    assert load_config(Fit, overrides=["tasks=x"], section="fit", other_sections=sections).tasks == ("x",)
    assert load_config(Other, [file], section="tasks", other_sections=sections | {"fit": lambda: Fit}).rank == 1


def test_paths_name_every_value() -> None:
    assert config_paths(Needs)[:2] == ["data", "fit.steps"]
    assert "fit.optimiser.lr" in config_paths(Needs)


CONFIGS = st.builds(
    Fit,
    steps=st.integers(0),
    name=st.text(st.characters(codec="utf-8"), max_size=20),
    quiet=st.booleans(),
    workdir=st.sampled_from([Path("runs"), Path("/a b/c"), Path("null")]),
    tasks=st.lists(st.text(max_size=8)).map(tuple),
    limit=st.none() | st.integers(),
    note=st.none() | st.sampled_from(["", "null", "~", "1", "true", "a: b", "- x", "é\n"]),
    widths=st.lists(st.integers()).map(tuple),
    optimiser=st.builds(Optimiser, lr=st.floats(allow_nan=False), kind=st.sampled_from(["adamw", "sgd"])),
    second=st.none() | st.just(Optimiser(lr=2)),
)


@settings(deadline=None)
@given(CONFIGS)
def test_the_dump_reads_back_to_an_equal_configuration(tmp_path_factory: pytest.TempPathFactory, config: Fit) -> None:
    file = write(tmp_path_factory.getbasetemp(), to_yaml(config))
    read = load_config(Fit, [file])
    assert read == config
    assert config_digest(read) == config_digest(config)


def test_the_dump_is_plain_and_leaves_out_what_cannot_be_set() -> None:
    dump = to_dict(Fit(tasks=("a",)))
    assert dump["workdir"] == "runs"
    assert dump["tasks"] == ["a"]
    assert dump["optimiser"]["betas"] == [0.9, 0.99]
    assert "made" not in dump


def test_the_digest_follows_the_values() -> None:
    assert config_digest(Optimiser()) == config_digest(Optimiser(lr=0.001))
    assert config_digest(Optimiser()) != config_digest(Optimiser(lr=0.002))


def test_a_type_that_cannot_be_configured_is_the_programmers_error() -> None:
    @dataclass(frozen=True)
    class Bad:
        value: complex = 0j
        names: list[str] = field(default_factory=list)

    for override in ("value=1", "names=a"):
        with pytest.raises(TypeError, match="a configuration cannot hold the type"):
            load_config(Bad, overrides=[override])
