from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from llgbm.adapters.peft_io import load_peft
from llgbm.base import load_base
from llgbm.chat import prompt_ids, task_messages
from llgbm.decoding.decoder import generate
from llgbm.decoding.sampling import SamplingParams
from llgbm.pretrained.tiny import build_tiny_encoder
from llgbm.prompting import AdapterMaker, AdapterRequest
from llgbm_cli import main as cli
from tests.small_generator import calibrate_artefact

PROMPT = "Reverse the letters."
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tiny_checkpoint_path: Path) -> Run:
    """Runs the command on the tiny generator: its exit code, standard output and standard error."""

    def run_words(*words: str, said: str | io.StringIO = "") -> tuple[int, str, str]:
        monkeypatch.setenv("LLGBM_CHECKPOINT", str(tiny_checkpoint_path))
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.setattr("sys.argv", ["llgbm", *words])
        monkeypatch.setattr("sys.stdin", io.StringIO(said) if isinstance(said, str) else said)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out, printed.err

    return run_words


def test_every_command_helps_with_an_example(run: Run) -> None:
    for name in ("serve", "generate", "chat"):
        code, out, _ = run(name, "--help")
        assert code == 0
        assert f"llgbm {name}" in out.partition("Example")[2]
    code, out, _ = run("train", "--help")
    assert (code, "example: llgbm train tasks --help" in out) == (0, True)
    code, out, _ = run("--help")
    assert (code, "llgbm chat" in out) == (0, True)


def test_generate_writes_the_adapter_of_prompt_and_examples(run: Run, tiny_maker: AdapterMaker, tmp_path: Path) -> None:
    examples = tmp_path / "examples.json"
    examples.write_text(json.dumps([{"input": "abc", "output": "cba"}]))
    lines = tmp_path / "examples.txt"
    lines.write_text("abc => cba\n\n")
    expected = tiny_maker.id_of(AdapterRequest((PROMPT,), (("abc", "cba"),), 0.5))
    for file in (examples, lines):
        out = tmp_path / file.suffix
        code, printed, error = run(
            "generate", PROMPT, "--examples", str(file), "--scale", "0.5", "--out", str(out), "--json"
        )
        assert (code, error) == (0, "")
        assert json.loads(printed)["id"] == expected
        assert load_peft(out)[1] == tiny_maker.checkpoint.manifest.base_id
    code, printed, _ = run("generate", PROMPT, "--out", str(tmp_path / "plain"))
    assert (code, printed.split(",")[0]) == (
        0,
        f"{tmp_path / 'plain'}: adapter {tiny_maker.id_of(AdapterRequest((PROMPT,)))}",
    )


def test_generate_refuses_another_text_encoder(run: Run, tmp_path: Path) -> None:
    other = build_tiny_encoder(tmp_path / "other", seed=1)
    code, _, error = run("generate", PROMPT, "--out", str(tmp_path / "out"), "--text-encoder", str(other))
    assert code == cli.EXIT_REFUSED
    assert "the text encoder is not the one that the generator was trained with" in error
    assert not (tmp_path / "out").exists()


def test_generate_replaces_an_adapter_and_nothing_else(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    for text in ("Write it in capitals.", "Write it in small letters."):
        code, _, error = run("generate", text, "--out", str(folder))
        assert (code, error) == (0, "")
        assert {path.name for path in folder.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    kept = folder / "notes.txt"
    kept.write_text("mine")
    for out, problem in ((folder, "holds other files (notes.txt)"), (kept, "is a file")):
        code, _, error = run("generate", PROMPT, "--out", str(out))
        assert code == cli.EXIT_REFUSED
        assert problem in error
    assert kept.read_text() == "mine"


@pytest.mark.parametrize("storage", ["float32", "auto"])
def test_chat_answers_with_the_description_in_the_context_and_keeps_the_conversation(
    run: Run, tiny_maker: AdapterMaker, tiny_base_path: Path, storage: str
) -> None:
    words = ["chat", PROMPT, "--base", str(tiny_base_path), "--max-tokens", "6", "--storage", storage]
    code, out, error = run(*words, "--json", said="cheese\n\nhouse\n")
    assert (code, error) == (0, "")
    answers = [json.loads(line) for line in out.splitlines()]
    assert len(answers) == 2
    setting = tiny_maker.context_setting(AdapterRequest((PROMPT,)))
    scale = setting.scale
    assert (answers[0]["context_used"], answers[0]["scale"]) == (setting.context, scale) == ("description", scale)
    if storage == "float32":
        base = load_base(tiny_base_path)
        (made,) = tiny_maker.make([AdapterRequest((PROMPT,), scale=scale)])
        messages = task_messages("cheese", description=PROMPT)
        for turn, answer in zip(("cheese", "house"), answers, strict=True):
            if turn == "house":
                messages.append({"role": "user", "content": turn})
            (ids,) = generate(base, [prompt_ids(base.tokenizer, messages)], made.weights, SamplingParams(max_tokens=6))
            assert answer["answer"] == base.tokenizer.decode(ids, skip_special_tokens=True)
            messages.append({"role": "assistant", "content": answer["answer"]})
    code, streamed, _ = run(*words, "--once", said="cheese\n")
    assert (code, streamed) == (0, answers[0]["answer"] + "\n")


def test_where_the_adapter_only_harms_the_base_answers_and_no_adapter_is_named(
    run: Run, tiny_checkpoint_path: Path, tiny_base_path: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_checkpoint_path, tmp_path / "harms")
    calibrate_artefact(tmp_path / "harms", scale=0.0)
    words = ["chat", PROMPT, "--base", str(tiny_base_path), "--storage", "float32", "--max-tokens", "6", "--once"]
    code, out, error = run(*words, "--json", "--checkpoint", str(tmp_path / "harms"), said="cheese")
    assert (code, error) == (0, "")
    told = json.loads(out)
    assert (told["adapter_id"], told["context_used"], told["scale"]) == (None, "description", 0.0)
    base = load_base(tiny_base_path)
    ids = prompt_ids(base.tokenizer, task_messages("cheese", description=PROMPT))
    (answer,) = generate(base, [ids], None, SamplingParams(max_tokens=6))
    assert told["answer"] == base.tokenizer.decode(answer, skip_special_tokens=True)


def test_examples_stand_before_the_first_turn(run: Run, tiny_base_path: Path, tmp_path: Path) -> None:
    file = tmp_path / "examples.txt"
    file.write_text("abc => cba\n")
    words = ["chat", PROMPT, "--base", str(tiny_base_path), "--max-tokens", "4", "--once"]
    answers = {
        context: run(*words, "--examples", str(file), "--context", context, said="cheese")
        for context in ("none", "description", "examples", "auto")
    }
    assert [code for code, _, _ in answers.values()] == [0, 0, 0, 0]
    assert answers["auto"] == answers["examples"]
    assert len({out for _, out, _ in answers.values()}) == 3
    code, _, error = run(*words, "--context", "examples", said="cheese")
    assert (code, error.count("\n")) == (2, 1)
    assert "--context examples needs examples" in error


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (
            ["generate", " ", "--out", "x"],
            2,
            "a description and both sides of an example must hold more than white space",
        ),
        (["generate", "a", "--out", "x", "--examples", "nowhere.txt"], 2, "nowhere.txt: cannot be read"),
        (["generate", "a", "--out", "x", "--checkpoint", "nowhere"], 2, "no generator in nowhere"),
        (["generate", "a", "--out", "x", "--text-encoder", "./nowhere"], 2, "There is no folder nowhere"),
        (["generate", "a", "--out", "/dev/null/x"], 1, "/dev/null"),
        (["chat", "a", "--base", "./nowhere", "--once"], 2, "There is no folder nowhere"),
        (["train", "nothing"], 2, "no command 'nothing'"),
    ],
)
def test_an_error_is_one_sentence_with_its_code(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], code: int, told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    found, out, error = run(*words)
    assert (found, out, error.count("\n")) == (code, "", 1)
    assert told in error
    assert error.startswith("llgbm")


class Interrupted(io.StringIO):
    """Standard input of a user who presses Ctrl-C."""

    def read(self, size: int | None = -1) -> str:
        raise KeyboardInterrupt


def test_ctrl_c_has_a_code_of_its_own(run: Run, tiny_base_path: Path) -> None:
    code, out, _ = run("chat", PROMPT, "--base", str(tiny_base_path), "--once", said=Interrupted())
    assert (code, out) == (130, "")


def test_debug_shows_where_an_error_came_from(run: Run) -> None:
    code, _, error = run("--debug", "generate", " ", "--out", "x")
    assert code == 2
    assert "Traceback" in error


def test_train_without_the_pipeline_says_where_it_is() -> None:
    """The image of the service leaves it out."""
    without = "import sys; sys.modules['training'] = None; sys.argv = ['llgbm', 'train', 'fit']"
    start = [sys.executable, "-c", f"{without}; from llgbm_cli.main import main; main()"]
    done = subprocess.run(start, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "there is no pipeline here" in done.stderr


def test_train_passes_on_all_that_follows(run: Run) -> None:
    code, out, _ = run("train", "fit", "--help")
    assert code == 0
    assert out.startswith("llgbm train fit: ")
    code, out, _ = run("train", "tasks", "--show-config", "--help")
    assert (code, "llgbm train tasks" in out) == (0, True)


def test_serve_refuses_a_setting_before_it_listens(run: Run) -> None:
    code, _, error = run("serve", "--port", "70000")
    assert (code, error.startswith("LLGBM_PORT: ")) == (2, True)
