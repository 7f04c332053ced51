"""The README's commands give the README's answers, on the real base with the shipped generator."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import llgbm
from llgbm.adapters.peft_io import load_peft
from tests.readme_examples import README, Example, examples, run, same, service

EXAMPLES = examples(README.read_text("utf-8"))


@pytest.fixture(scope="module")
def port(real_base_path: Path, real_encoder_path: Path) -> Iterator[int]:
    """The port of a service with the weights of the fixtures."""
    with service() as at:
        yield at


def test_the_readme_has_an_example_for_every_way_to_use_the_service() -> None:
    commands = " ".join(e.command for e in EXAMPLES)
    for path in ("/generate-adapter", "/adapters/", "adapter_model.safetensors", "/chat"):
        assert path in commands
    for file in ("openai_client.py", "generate_and_load_with_peft.py"):
        assert f"examples/{file}" in commands


def test_each_example_is_named_by_the_readme_or_with_its_subject() -> None:
    root = README.parent
    text = "\n".join(path.read_text("utf-8") for path in (README, *(root / "docs").glob("*.md")))
    examples = [path for path in (root / "examples").iterdir() if path.is_file() and path.stem != "__init__"]
    assert {path.name for path in examples if path.name not in text and f"examples.{path.stem}\n" not in text} == set()


def test_the_readme_names_the_folders_that_there_are() -> None:
    (tree,) = re.findall(r"^```\n((?:\w+/ +.*\n)+)```", README.read_text("utf-8"), flags=re.MULTILINE)
    named = [line.split("/")[0] for line in tree.splitlines()]
    assert [name for name in named if not (README.parent / name).is_dir()] == []
    project = tomllib.loads((README.parent / "pyproject.toml").read_text("utf-8"))
    assert set(project["tool"]["importlinter"]["root_packages"]) <= set(named)


@pytest.mark.real
@pytest.mark.parametrize("example", EXAMPLES, ids=[e.command.split("\n")[0][:60] for e in EXAMPLES])
def test_a_command_prints_what_the_readme_says(example: Example, port: int) -> None:
    printed = run(example, port)
    assert same(printed, example.answer), f"{example.command}\nprints\n{printed}\nbut the README says\n{example.answer}"


@pytest.mark.real
def test_the_librarys_example_runs(real_encoder_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert llgbm.__doc__ is not None
    code = "".join(re.findall(r"^    (.*\n)", llgbm.__doc__, flags=re.MULTILINE))
    (tmp_path / "checkpoints").symlink_to(README.parent / "checkpoints")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, llgbm.__file__, "exec"), {})
    weights, base_id = load_peft(tmp_path / "french")
    assert base_id == "Qwen/Qwen2.5-Coder-0.5B-Instruct"
    assert sum(weights.product_norms().values()) > 0
